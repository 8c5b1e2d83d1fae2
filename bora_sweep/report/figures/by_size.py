"""Figures 3, 4 and 5: a value of each task against its training documents."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bora_sweep.report.figures.axes import draw_value_axis, spread_log
from bora_sweep.report.figures.data import BySize, Series
from bora_sweep.report.figures.style import COLORS, INK, MARKERS, MOST_NAMES, panels, set_labels


def draw(data: BySize) -> Figure:
    """Points with intervals where they can be told apart, and regression lines with bands."""
    figure, (axes,) = panels(7, 4)
    if data.y.is_change:
        axes.axhline(0, color=INK, lw=1)
    for name, series in data.series.items():
        lines = data.lines.loc[data.lines["series"] == name]
        _draw_series(axes, series, data.points.loc[data.points["series"] == name], lines)
    draw_value_axis(axes, data.y, data.points["value"].to_numpy())
    spread_log(axes, "x", data.points["documents"].to_numpy())
    set_labels(axes, "Training documents of the task", data.y.title)
    if any(series.label for series in data.series.values()):
        style = {"frameon": False, "fontsize": 9, "labelcolor": INK, "handletextpad": 0.2}
        figure.legend(loc="outside upper left", ncols=2, **style)
    return figure


def _draw_series(axes: Axes, series: Series, points: pd.DataFrame, line: pd.DataFrame) -> None:
    color, marker, are_few = COLORS[series.color], MARKERS[series.marker], len(points) <= MOST_NAMES
    x_D = points["documents"].to_numpy() * (1 + 0.01 * series.shift if are_few else 1)
    y_D, low_D, high_D, is_open_D = (points[name].to_numpy() for name in ("value", "low", "high", "is_open"))
    if are_few and not np.isnan(low_D).all():
        axes.vlines(x_D, low_D, high_D, color=color, lw=1, alpha=0.4)
    if not line.empty:
        x_G, y_G, low_G, high_G = line[["documents", "value", "low", "high"]].to_numpy().T
        axes.fill_between(x_G, low_G, high_G, color=COLORS[series.line_color], lw=0, alpha=0.1, zorder=1)
        axes.plot(x_G, y_G, color=COLORS[series.line_color], lw=1.5, alpha=0.8, zorder=1.5)
    size, alpha = (6, 0.9) if are_few else (3.5, 0.45)
    for kind_D, face, edge in ((is_open_D, "white", 1.2), (~is_open_D, color, 0)):
        if not kind_D.any():
            continue
        style = {"color": color, "ms": size, "alpha": alpha, "markerfacecolor": face, "markeredgewidth": edge}
        axes.plot(x_D[kind_D], y_D[kind_D], marker, **style)
    if series.label:
        axes.plot([], [], marker, color=color, ms=6, label=series.label)
