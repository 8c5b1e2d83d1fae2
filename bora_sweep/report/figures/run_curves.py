"""The curves over tau of several runs that compare, in one plot."""

from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from bora_sweep.report.figures.axes import draw_tau_axis, draw_value_axis
from bora_sweep.report.figures.data import Quantity, level_quantity
from bora_sweep.report.figures.style import COLORS, INK, panels, set_labels
from bora_sweep.report.figures.tau_axis import TauAxis
from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.text.formats import short_names

_COLORS = [COLORS[name] for name in ("independent", "shared", "best", "floor")] + ["#E69F00", "#56B4E9", INK]
_MARKERS, _LINES = "os^vP*X", ("-", (0, (5, 2)), (0, (1, 1.5)))


@dataclass(frozen=True)
class RunCurves:
    """A curve for each run, over the values of tau of all."""

    axis: TauAxis
    points: pd.DataFrame
    """`run`, `tau`, `x` on the axis, the `level` on test with its interval `low` and `high`, and `is_best` of its run;
    each run's in ascending tau."""
    y: Quantity


def run_curves_data(analyses: list[tuple[str, Analysis]]) -> RunCurves:
    """Of runs by name."""
    fits = [(name, analysis, m) for name, analysis in analyses for m in analysis.summary.fits]
    axis = TauAxis(sorted({analysis.summary.settings[m].tau for _, analysis, m in fits}))
    x_of = dict(zip(axis.taus, axis.x.tolist(), strict=True))
    rows = []
    for name, analysis, m in fits:
        tau, level = analysis.summary.settings[m].tau, analysis.bootstrap.level(m)
        rows.append((name, tau, x_of[tau], level.estimate, level.low, level.high, m == analysis.summary.best))
    columns = ["run", "tau", "x", "level", "low", "high", "is_best"]
    return RunCurves(axis, pd.DataFrame(rows, columns=columns), level_quantity(analyses[0][1]))


def draw(data: RunCurves) -> Figure:
    """A line for each run with marks at its fits; the best has a larger one, and its interval."""
    figure, (axes,) = panels(8, 4.5)
    runs = list(dict.fromkeys(data.points["run"]))
    names = short_names(runs, 40)
    for n, (run, name) in enumerate(zip(runs, names, strict=True)):
        points = data.points.loc[data.points["run"] == run]
        color, marker = _COLORS[n % len(_COLORS)], _MARKERS[n % len(_MARKERS)]
        inner = points.loc[points["tau"].between(0, float("inf"), inclusive="neither")]
        line = _LINES[n // len(_COLORS) % len(_LINES)]
        axes.plot(points["x"], points["level"], color=color, lw=1, linestyle=":", alpha=0.7)
        axes.plot(inner["x"], inner["level"], color=color, lw=1.8, linestyle=line)
        axes.plot(points["x"], points["level"], marker, color=color, ms=4.5, label=name.replace("$", r"\$"))
        (best,) = points.loc[points["is_best"]].to_dict("records")
        axes.vlines(best["x"], best["low"], best["high"], color=color, lw=1.5, alpha=0.5)
        axes.plot(best["x"], best["level"], marker, color=color, ms=10, markeredgecolor="white", zorder=5)
    draw_tau_axis(axes, data.axis)
    draw_value_axis(axes, data.y, data.points["level"].to_numpy())
    set_labels(axes, "Precision τ", data.y.title)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9, labelcolor=INK, handletextpad=0.2)
    return figure
