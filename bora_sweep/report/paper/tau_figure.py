"""Figure 2 of the paper, its curve under ours."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from bora_sweep.report.figures.axes import draw_tau_axis, percent_axis, spread_log
from bora_sweep.report.figures.style import COLORS, INK, panels, plain_style, set_labels, set_title
from bora_sweep.report.figures.tau_axis import TauAxis
from bora_sweep.report.paper.compare import PaperComparison

PAPER, OURS = COLORS["shared"], INK
_LOG_FROM = 3  # two runs of unlike models lie apart


@plain_style()
def draw(comparison: PaperComparison) -> Figure:
    """As they are on the left; on the right each curve over its own lowest, which compares shapes alone."""
    figure, (level, shape) = panels(10, 4, columns=2)
    scale = TauAxis(sorted({*comparison.paper.taus, *comparison.ours.taus}))
    for curves, color, width, label in (
        (comparison.paper, PAPER, 4.5, "the paper"),
        (comparison.ours, OURS, 2.2, "this run"),
    ):
        drawn = [(level, curves.overall_V, curves.perplexity_DV)]
        if comparison.taus:
            drawn.append((shape, *curves.above_lowest(comparison.taus)))
        for axes, overall_V, tasks_DV in drawn:
            style = {"color": color, "width": width, "label": label}
            _draw_curves(axes, scale, curves.taus, overall_V=overall_V, tasks_DV=tasks_DV, **style)
    _finish(level, scale, "As they are", "Perplexity")
    _finish(shape, scale, "Over each curve's lowest of the τ that both have", "Above the lowest")
    percent_axis(shape)
    values = np.concatenate([curves.perplexity_DV.ravel() for curves in (comparison.paper, comparison.ours)])
    spread_log(level, "y", values[np.isfinite(values)], factor=_LOG_FROM)
    level.legend(loc="best", frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _draw_curves(
    axes: Axes,
    scale: TauAxis,
    taus: list[float],
    *,
    overall_V: np.ndarray,
    tasks_DV: np.ndarray,
    color: str,
    width: float,
    label: str,
) -> None:
    x_V = np.array([scale.x[scale.taus.index(tau)] for tau in taus])
    alpha = max(0.08, min(0.4, 8 / len(tasks_DV)))
    for part, is_dotted in TauAxis(taus).parts():
        lines = [np.column_stack([x_V[part], row[part]]) for row in tasks_DV]
        axes.add_collection(LineCollection(lines, color=color, lw=0.8, alpha=alpha * (0.5 if is_dotted else 1)))
        style = {"color": color, "lw": width, "linestyle": ":" if is_dotted else "-"}
        axes.plot(x_V[part], overall_V[part], zorder=3, **style)
    axes.plot(x_V, overall_V, "o", ms=1.4 * width + 2, color=color, zorder=3, label=label)


def _finish(axes: Axes, scale: TauAxis, title: str, y_title: str) -> None:
    draw_tau_axis(axes, scale)
    axes.autoscale_view(scalex=False)
    set_title(axes, title)
    set_labels(axes, "Precision τ", y_title)
