"""Figure 2 of the paper, its curve under ours."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bora_sweep.report.figures.draw import GREY, INK, PALE, SHARED, TauAxis, plain_style
from bora_sweep.report.paper.compare import PaperComparison

PAPER, OURS = SHARED, INK


@plain_style()
def draw(comparison: PaperComparison) -> Figure:
    """As they are on the left; on the right each curve over its own lowest, which compares shapes alone."""
    figure = Figure(figsize=(10, 4), facecolor="white", layout="constrained")
    level, shape = figure.subplots(1, 2)
    scale = TauAxis(sorted({*comparison.paper.taus, *comparison.ours.taus}))
    for curves, color, width, label in (
        (comparison.paper, PAPER, 4.5, "the paper"),
        (comparison.ours, OURS, 2.2, "this run"),
    ):
        drawn = [(level, curves.overall_V, curves.perplexity_DV)]
        if comparison.taus:
            drawn.append((shape, *curves.above_lowest(comparison.taus)))
        for axes, overall_V, tasks_DV in drawn:
            _draw(axes, scale, curves.taus, overall_V, tasks_DV, color, width, label)
    _dress(level, scale, "As they are", "Perplexity")
    _dress(shape, scale, "Over each curve's lowest of the τ that both have", "Above the lowest")
    shape.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%".replace("-", "−")))
    _spread(level, np.concatenate([curves.perplexity_DV.ravel() for curves in (comparison.paper, comparison.ours)]))
    level.legend(loc="best", frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _draw(
    axes: Axes,
    scale: TauAxis,
    taus: list[float],
    overall_V: np.ndarray,
    tasks_DV: np.ndarray,
    color: str,
    width: float,
    label: str,
) -> None:
    x_V = np.array([scale.x[scale.taus.index(tau)] for tau in taus])
    alpha = max(0.08, min(0.4, 8 / len(tasks_DV)))
    for part, linestyle in TauAxis(taus).parts():
        lines = [np.column_stack([x_V[part], row[part]]) for row in tasks_DV]
        axes.add_collection(LineCollection(lines, color=color, lw=0.8, alpha=alpha * (0.5 if linestyle else 1)))
        axes.plot(x_V[part], overall_V[part], color=color, lw=width, linestyle=linestyle or "-", zorder=3)
    axes.plot(x_V, overall_V, "o", ms=1.4 * width + 2, color=color, zorder=3, label=label)


def _dress(axes: Axes, scale: TauAxis, title: str, name: str) -> None:
    scale.draw(axes)
    axes.autoscale_view(scalex=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=GREY, linewidth=0.8)
    axes.tick_params(which="both", color=GREY, labelcolor=INK, labelsize=9, width=0.8)
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel("Precision τ", fontsize=10, color=INK)
    axes.set_ylabel(name, fontsize=10, color=INK)


def _spread(axes: Axes, values: np.ndarray) -> None:
    """A log axis where the two are far apart."""
    known = values[np.isfinite(values)]
    if known.max() < 3 * known.min():
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
