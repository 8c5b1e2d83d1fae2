"""The map of similarities: a tree of the tasks, and how alike each two of them are."""

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import dendrogram

from bora_sweep.report.figures.style import COLORS, GREY, INK, MOST_NAMES, ShownFigure, plain_style
from bora_sweep.report.stats.likeness import Likeness
from bora_sweep.report.text.formats import plain
from bora_sweep.similarity.clusters import tree

_COLORS = LinearSegmentedColormap.from_list("likeness", [COLORS["shared"], "#ffffff", COLORS["independent"]])
_MOST_LETTERS = 18


@plain_style()
def draw_likeness(found: Likeness) -> Figure:
    """The tree at the left, the map at the right, both in the tree's order; lines part the groups."""
    similarity_KK, K = found.similarity_KK, len(found.tasks)
    assert similarity_KK is not None
    side = min(9.0, max(3.6, 0.17 * K + 1.6))
    figure = ShownFigure(figsize=(side + 2.6, side), facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 4])
    order = _draw_tree(left, similarity_KK)
    shown_KK = similarity_KK[np.ix_(order, order)].copy()
    np.fill_diagonal(shown_KK, np.nan)
    image = right.imshow(shown_KK, cmap=_COLORS, vmin=-1, vmax=1, interpolation="nearest")
    right.set_facecolor("#f2f2f2")
    names = [plain(found.tasks[place], _MOST_LETTERS) for place in order]
    is_named = K <= MOST_NAMES
    right.set_yticks(range(K) if is_named else [], names if is_named else [], fontsize=8, color=INK)
    right.set_xticks([])
    right.tick_params(length=0)
    right.yaxis.tick_right()
    for spine in right.spines.values():
        spine.set_visible(False)
    _draw_borders(right, [found.group[place] for place in order])
    bar = figure.colorbar(image, ax=right, shrink=0.5, pad=0.02)
    bar.set_label("similarity", color=INK, fontsize=9)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, color=GREY, labelcolor=INK)
    return figure


def _draw_tree(axes, similarity_KK: np.ndarray) -> list[int]:
    """The dendrogram with leaves at the rows of the map; returns their order from the top."""
    drawn = dendrogram(tree(similarity_KK), no_plot=True)
    for x_4, height_4 in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        axes.plot(height_4, (np.array(x_4) - 5) / 10, color=INK, lw=0.8)
    K = len(similarity_KK)
    axes.set(xlim=(max(map(max, drawn["dcoord"])) * 1.03, 0), ylim=(K - 0.5, -0.5), yticks=[], xticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return drawn["leaves"]


def _draw_borders(axes, group: list[str | None]) -> None:
    for place in range(1, len(group)):
        if group[place] != group[place - 1]:
            axes.axhline(place - 0.5, color=INK, lw=0.8)
            axes.axvline(place - 0.5, color=INK, lw=0.8)
