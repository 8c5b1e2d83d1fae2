"""Figures 3, 4 and 5: a value of each task against its training documents."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bora_sweep.report.figures.axes import draw_value_axis, spread_log, whole_numbers
from bora_sweep.report.figures.data import BySize, Series
from bora_sweep.report.figures.legends import by_size_legend
from bora_sweep.report.figures.style import COLORS, INK, MARKERS, MOST_NAMES, panels, set_labels
from bora_sweep.report.text.formats import short_names


def draw(data: BySize) -> Figure:
    """Points with intervals where they can be told apart, and regression lines with bands."""
    figure, (axes,) = panels(7, 4)
    if data.y.is_change:
        axes.axhline(0, color=INK, lw=1)
    for name, series in data.series.items():
        points = data.points.loc[data.points["series"] == name]
        x_D = _places(points, series, data.places)
        _draw_series(axes, series, points, x_D, data.lines.loc[data.lines["series"] == name])
    draw_value_axis(axes, data.y, data.points["value"].to_numpy())
    if data.places is None:
        spread_log(axes, "x", data.points["documents"].to_numpy())
        whole_numbers(axes.xaxis)
    else:
        _name_tasks(axes, data.places)
    set_labels(axes, data.x_title, data.y.title)
    _draw_legend(figure, data)
    return figure


def _places(points: pd.DataFrame, series: Series, places: dict[str, int] | None) -> np.ndarray:
    """Where points stand; of few tasks those of two series stand side by side."""
    are_few = len(points) <= MOST_NAMES
    if places is not None:
        place_D = np.array([places[task] for task in points["task"]], dtype=float)
        return place_D + (0.12 * series.shift if are_few else 0)
    return points["documents"].to_numpy() * (1 + 0.01 * series.shift if are_few else 1)


def _name_tasks(axes: Axes, places: dict[str, int]) -> None:
    axes.set_xlim(0.3, len(places) + 0.7)
    if len(places) > MOST_NAMES:
        axes.set_xticks([])
        return
    names = short_names(list(places), 18)
    axes.set_xticks(list(places.values()), names, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)


def _draw_legend(figure: Figure, data: BySize) -> None:
    """Each mark that the axes hold, and no other."""
    handles = []
    for color, mark, text in by_size_legend(data):
        style: dict[str, Any]
        shade = COLORS[color]
        if mark in ("line", "bar"):
            style = {"lw": 1.5, "alpha": 0.8} if mark == "line" else {"lw": 0, "marker": "|", "ms": 9, "alpha": 0.6}
        else:
            face = "white" if mark.startswith("open-") else shade
            shape = MARKERS[mark.removeprefix("open-")]
            style = {"lw": 0, "marker": shape, "ms": 6, "markerfacecolor": face, "markeredgewidth": 1.2}
        handles.append(Line2D([], [], color=shade, label=text, **style))
    style = {"frameon": False, "fontsize": 8.5, "labelcolor": INK, "handletextpad": 0.3, "columnspacing": 1.2}
    figure.legend(handles=handles, loc="outside upper left", ncols=2 if len(data.series) > 1 else 3, **style)


def _draw_series(axes: Axes, series: Series, points: pd.DataFrame, x_D: np.ndarray, line: pd.DataFrame) -> None:
    color, marker, are_few = COLORS[series.color], MARKERS[series.marker], len(points) <= MOST_NAMES
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
