"""Figure 1: training documents of each task."""

import numpy as np
from matplotlib.figure import Figure

from bora_sweep.report.figures.axes import whole_numbers
from bora_sweep.report.figures.data import TaskSizes
from bora_sweep.report.figures.style import GREY, INK, MOST_NAMES, panels, set_labels
from bora_sweep.report.text.formats import short_names


def draw(data: TaskSizes) -> Figure:
    """Bars, most documents first; with names where they can be read."""
    sizes_D = data.bars["documents"].to_numpy()
    if len(sizes_D) > MOST_NAMES:
        return _without_names(sizes_D)
    figure, (axes,) = panels(7, 0.8 + 0.23 * len(sizes_D))
    bars = axes.barh(np.arange(len(sizes_D)), sizes_D, height=0.7, color=GREY)
    axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8, color=INK)
    axes.set_yticks(np.arange(len(sizes_D)), short_names(data.bars["task"].tolist(), 32), parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(sizes_D) - 0.4, -0.6)
    axes.margins(x=0.08)
    whole_numbers(axes.xaxis)
    set_labels(axes, "Training documents", "")
    return figure


def _without_names(sizes_D: np.ndarray) -> Figure:
    figure, (axes,) = panels(7, 3.2)
    axes.stairs(sizes_D, np.arange(len(sizes_D) + 1) + 0.5, fill=True, color=GREY)
    axes.set_xlim(0.5 - 0.01 * len(sizes_D), len(sizes_D) + 0.5)
    whole_numbers(axes.xaxis)
    whole_numbers(axes.yaxis)
    set_labels(axes, "Task, in order of size", "Training documents")
    return figure
