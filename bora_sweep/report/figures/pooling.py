"""Figure 6: no, partial and complete pooling side by side, tasks by size."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bora_sweep.report.figures.axes import needs_log, spread_log
from bora_sweep.report.figures.data import ROLES, Poolings
from bora_sweep.report.figures.legends import pooling_legend
from bora_sweep.report.figures.style import COLORS, INK, MARKERS, PALE, panels, set_labels
from bora_sweep.report.text.formats import short_names
from bora_sweep.report.text.pooling import factor_text


def draw(data: Poolings) -> Figure:
    """A row for each task, or group of tasks: three marks, the interval of the middle one, and the pooling factor."""
    rows = data.rows
    figure, (axes,) = panels(7, 1.3 + 0.25 * len(rows))
    y_D = np.arange(len(rows))
    levels_D3 = rows[list(ROLES)].to_numpy()
    axes.hlines(y_D, levels_D3.min(axis=1), levels_D3.max(axis=1), color=PALE, lw=3, zorder=1)
    axes.hlines(y_D, rows["low"], rows["high"], color=COLORS["best"], lw=1.4, alpha=0.5, zorder=2)
    for role, marker in ROLES.items():
        axes.plot(rows[role], y_D, MARKERS[marker], color=COLORS[role], ms=5.5, alpha=0.9, zorder=3, mew=0)
    names = rows["text"].tolist()
    axes.set_yticks(y_D, names if data.is_grouped else short_names(names, 32), parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=PALE, linewidth=0.8)
    axes.spines["left"].set_visible(False)
    _level_axis(axes, data, levels_D3)
    if data.has_factors:
        _write_factors(axes, rows["factor"].to_numpy())
    _draw_legend(figure, data)
    return figure


def _level_axis(axes: Axes, data: Poolings, levels_D3: np.ndarray) -> None:
    if data.x.unit == "percent":
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")
    elif data.x.may_be_log and needs_log(levels_D3):
        spread_log(axes, "x", levels_D3)
    set_labels(axes, data.x.title, "")


def _write_factors(axes: Axes, factor_D: np.ndarray) -> None:
    """At the right of each row."""
    style = {
        "transform": axes.get_yaxis_transform(),
        "ha": "right",
        "va": "center_baseline",
        "fontsize": 8.5,
        "color": INK,
    }
    axes.text(1.09, -1.0, "pooling", **style)
    for y, factor in enumerate(factor_D.tolist()):
        axes.text(1.08, y, factor_text(factor), **style)


def _draw_legend(figure: Figure, data: Poolings) -> None:
    handles = []
    for color, mark, text in pooling_legend(data):
        style: dict[str, Any] = {"lw": 1.4, "alpha": 0.5}
        if mark != "bar":
            style = {"lw": 0, "marker": MARKERS[mark], "ms": 5.5, "mew": 0}
        handles.append(Line2D([], [], color=COLORS[color], label=text, **style))
    look = {"frameon": False, "fontsize": 8.5, "labelcolor": INK, "handletextpad": 0.3, "columnspacing": 1.2}
    figure.legend(handles=handles, loc="outside upper left", ncols=2, **look)
