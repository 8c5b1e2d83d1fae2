"""matplotlib's axes of the figures: the axis of tau with its breaks, and log axes with plain numbers."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from bora_sweep.report.figures.data import Quantity
from bora_sweep.report.figures.style import GREY
from bora_sweep.report.figures.tau_axis import TauAxis

LOG_FROM = 5
"""Values that span more than this factor get a log axis."""


def draw_tau_axis(axes: Axes, scale: TauAxis) -> None:
    """Ticks, limits and breaks of the horizontal axis."""
    ticks, (low, high) = scale.ticks, (scale.finite[0], scale.finite[-1])
    powers = zip(ticks["text"], ticks["exponent"], strict=True)
    axes.set_xticks(ticks["x"].tolist(), [text if math.isnan(k) else f"$10^{{{k:.0f}}}$" for text, k in powers])
    minor = np.add.outer(np.arange(math.floor(low), math.ceil(high)), np.log10(np.arange(2, 10))).ravel()
    axes.set_xticks(minor[(minor >= low) & (minor <= high)], minor=True)
    axes.set_xlim(*scale.limits)
    for x in scale.breaks:
        white = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        slashes = axes.text(x, 0, "//", color=GREY, fontsize=9, clip_on=False, zorder=6, bbox=white)
        slashes.set(transform=axes.get_xaxis_transform(), ha="center", va="center")


def needs_log(values: np.ndarray, factor: float = LOG_FROM) -> bool:
    """Whether positive values span more than `factor`; NaN is left out."""
    low, high = np.nanmin(values), np.nanmax(values)
    return bool(low > 0 and math.isfinite(high) and high / low > factor)


def spread_log(axes: Axes, which: str, values: np.ndarray, factor: float = LOG_FROM) -> None:
    """A log axis, `which` is x or y, where `values` need one; its ticks are written as plain numbers."""
    if not needs_log(values, factor):
        return
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    is_short = np.nanmax(values) / np.nanmin(values) < 300
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if is_short else (1,), numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def whole_numbers(axis: Axis) -> None:
    """Ticks of a count at whole numbers alone, with commas; a log axis from 1 on has no others."""
    if axis.get_scale() == "linear":
        axis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def draw_value_axis(axes: Axes, quantity: Quantity, values: np.ndarray) -> None:
    """The vertical axis: fractions as percentages or points, other values on logarithms where they may need them."""
    if quantity.unit != "number":
        percent_axis(axes, "%" if quantity.unit == "percent" else "")
    elif quantity.may_be_log:
        spread_log(axes, "y", values)


def percent_axis(axes: Axes, suffix: str = "%") -> None:
    """A vertical axis of fractions, written as percentages."""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}{suffix}".replace("-", "−")))
