"""Figure 2: tau against the level on test, all tasks together on the left, each task on the right."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from bora_sweep.report.figures.axes import draw_tau_axis, draw_value_axis
from bora_sweep.report.figures.data import ROLES, TauCurve
from bora_sweep.report.figures.style import COLORS, GREY, INK, MARKERS, annotate, panels, set_labels, set_title

BEST = COLORS["best"]


def draw(data: TauCurve) -> Figure:
    """The curve with its intervals, and the curves of the tasks."""
    x_V, (low_V, high_V) = data.axis.x, data.fits[["low", "high"]].to_numpy().T
    figure, (overall, each) = panels(10, 4, columns=2)
    for part, is_dotted in data.axis.parts():
        overall.fill_between(x_V[part], low_V[part], high_V[part], color=GREY, lw=0, alpha=0.1 if is_dotted else 0.18)
        lines = [np.column_stack([x_V[part], row_V[part]]) for row_V in data.tasks_DV[data.drawn]]
        alpha = max(0.08, min(0.7, 15 / len(lines))) * (0.5 if is_dotted else 1)
        each.add_collection(LineCollection(lines, color=GREY, lw=0.8, alpha=alpha))
    _draw_curve(overall, data, is_smooth=not data.smooth.empty)
    _draw_curve(each, data, is_smooth=False)
    _draw_choice(overall, data)
    for name, value, text in data.references.itertuples(index=False):
        color = COLORS["floor"] if name == "floor" else GREY
        overall.axhline(value, color=color, lw=1.3, linestyle=(0, (5, 3)), zorder=1)
        annotate(overall, text, (1, value), (-2, 4), xycoords=("axes fraction", "data"), ha="right")
    set_title(overall, "All tasks together")
    set_title(each, data.each_title)
    draw_value_axis(overall, data.y, np.ones(1))  # all tasks together are near one another
    draw_value_axis(each, data.y, data.tasks_DV[data.drawn])
    return figure


def _draw_curve(axes: Axes, data: TauCurve, is_smooth: bool) -> None:
    """The thick line over tau; a dot for each fit, with the ends and the best in color."""
    x_V, y_V = data.axis.x, data.fits["level"].to_numpy()
    for part, is_dotted in data.axis.parts():
        if is_dotted or not is_smooth:
            axes.plot(x_V[part], y_V[part], color=INK, lw=2.2, linestyle=":" if is_dotted else "-", zorder=3)
    if is_smooth:
        x_G, y_G, low_G, high_G = data.smooth.to_numpy().T
        axes.fill_between(x_G, low_G, high_G, color=GREY, lw=0, alpha=0.4, zorder=2)
        axes.plot(x_G, y_G, color=INK, lw=2.2, zorder=3)
    axes.plot(x_V, y_V, "o", ms=4, color=INK, markeredgecolor="white", markeredgewidth=0.5, zorder=4)
    for fit in data.fits.loc[data.fits["role"] != ""].to_dict("records"):
        color, marker = COLORS[fit["role"]], MARKERS[ROLES[fit["role"]]]
        axes.plot(fit["x"], fit["level"], marker, ms=8, color=color, markeredgecolor="white", zorder=5)
    draw_tau_axis(axes, data.axis)
    axes.margins(y=0.14)
    set_labels(axes, "Precision τ", data.y.title)


def _draw_choice(axes: Axes, data: TauCurve) -> None:
    """The best tau with its name, the one-standard-error choice, and a bar for the values that are as good."""
    (best,) = data.fits.loc[data.fits["role"] == "best"].to_dict("records")
    shift = (0, 10 if data.y.is_better_above else -18)
    annotate(axes, data.best_text, (best["x"], best["level"]), shift, ha="center", color=BEST, weight="bold")
    for fit in data.fits.loc[data.fits["one_standard_error"]].to_dict("records"):
        style = {"color": BEST, "markerfacecolor": "white", "markeredgewidth": 1.5}
        axes.plot(fit["x"], fit["level"], "D", ms=7, zorder=6, **style)
    if data.as_good is not None:
        transform = axes.get_xaxis_transform()
        axes.plot(data.as_good, [0.012, 0.012], color=BEST, lw=5, solid_capstyle="butt", transform=transform)
