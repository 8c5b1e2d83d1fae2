"""What each figure shows, as DataFrames made once: matplotlib draws them for `report.md`, Vega for the page.

D tasks in the order of `Summary.tasks`, V fits in ascending tau.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bora_sweep.report.figures.tau_axis import TauAxis
from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.gains import END_NAMES, gains_against
from bora_sweep.report.stats.significance import UNKNOWN
from bora_sweep.report.stats.smooth_curve import SmoothCurve
from bora_sweep.report.stats.summary import Summary
from bora_sweep.report.stats.trends import Trend
from bora_sweep.report.text.formats import perplexity_text, tau_text

ROLES = {"independent": "square", "shared": "triangle-up", "best": "diamond"}
"""The marks of tau = 0, of tau = inf and of the best fit; their colors are the palette's by the same names."""
_LINE_POINTS = 100


@dataclass(frozen=True)
class TaskSizes:
    """Figure 1."""

    bars: pd.DataFrame
    """`task`, `documents`: of the training split, most first."""


@dataclass(frozen=True)
class TauCurve:
    """Figure 2."""

    axis: TauAxis
    fits: pd.DataFrame
    """A row for each of the V fits: `setting`, `tau`, `x` on the axis, test `perplexity` with the interval `low` and
    `high`, `role` (a key of `ROLES`, or empty), and whether it is the `one_standard_error` choice beside the best."""
    smooth: pd.DataFrame
    """The smooth curve through the fits between the ends: `x`, `perplexity`, `low`, `high`; maybe empty."""
    references: pd.DataFrame
    """Horizontal lines that fit the plot: `name` (zero-shot, floor), `perplexity`, `text`."""
    as_good: tuple[float, float] | None
    """From where to where on the axis validation does not tell tau from the best."""
    best_text: str
    tasks_DV: np.ndarray
    """Test perplexity of each task."""


@dataclass(frozen=True)
class Series:
    """How a set of points in Figures 3 to 5 is drawn: keys of `PALETTE` and `MARKERS`."""

    color: str
    line_color: str
    marker: str
    label: str = ""
    """In the legend; empty without one."""
    shift: int = 0
    """-1 or 1: points of one task stand side by side with those of another series."""


@dataclass(frozen=True)
class BySize:
    """Figures 3, 4 and 5: a value of each task against its training documents."""

    y_title: str
    is_percent: bool
    """The values are fractions of 1, shown as percentages around a line at 0."""
    series: dict[str, Series]
    points: pd.DataFrame
    """`series`, `task`, `documents`, `value`, its interval `low` and `high` (NaN without), and `is_open`: a mark that
    is not filled, for a task without a verdict."""
    lines: pd.DataFrame
    """Regression lines with their bands: `series`, `documents`, `value`, `low`, `high`; maybe empty."""


FigureData = TaskSizes | TauCurve | BySize


def task_sizes_data(summary: Summary) -> TaskSizes:
    """Figure 1: training documents of each task."""
    return TaskSizes(pd.DataFrame({"task": summary.tasks, "documents": summary.train_documents_D}))


def tau_curve_data(analysis: Analysis) -> TauCurve:
    """Figure 2: test perplexity over tau, of all tasks together and of each."""
    summary, choice = analysis.summary, analysis.choice
    axis = TauAxis([summary.settings[m].tau for m in summary.fits])
    roles = {summary.independent: "independent", summary.shared: "shared", summary.best: "best"}
    rows = []
    for x, m in zip(axis.x, summary.fits, strict=True):
        fit, interval = summary.settings[m], analysis.bootstrap.perplexity(m)
        is_simpler = m == choice.one_standard_error != choice.minimum
        values = (fit.test_perplexity, interval.low, interval.high)
        rows.append((m, fit.tau, x, *values, roles.get(m, ""), is_simpler))
    columns = ["setting", "tau", "x", "perplexity", "low", "high", "role", "one_standard_error"]
    as_good = None if choice.curve is None else choice.curve.as_good
    lines = [(name, value, f"{name} {perplexity_text(value)}") for name, value in references_in_view(summary).items()]
    return TauCurve(
        axis=axis,
        fits=pd.DataFrame(rows, columns=columns),
        smooth=_smooth_data(analysis.curve),
        references=pd.DataFrame(lines, columns=["name", "perplexity", "text"]),
        as_good=None if as_good is None else (math.log10(as_good.low), math.log10(as_good.high)),
        best_text=f"best: τ = {tau_text(summary.best_tau)}",
        tasks_DV=summary.perplexity_DM[:, summary.fits],
    )


def _smooth_data(curve: SmoothCurve | None) -> pd.DataFrame:
    if curve is None:
        return pd.DataFrame(columns=["x", "perplexity", "low", "high"], dtype=float)
    low_G, high_G = curve.band
    nats = {"perplexity": curve.nats_per_token_G, "low": low_G, "high": high_G}
    return pd.DataFrame({"x": np.log10(curve.tau_G)} | {name: np.exp(nats_G) for name, nats_G in nats.items()})


def references(summary: Summary) -> dict[str, float]:
    """Test perplexity of the zero-shot model and of the true source, where they are known."""
    zero_shot = math.nan if summary.zero_shot is None else summary.settings[summary.zero_shot].test_perplexity
    return {name: value for name, value in (("zero-shot", zero_shot), ("floor", summary.floor)) if value == value}


def references_in_view(summary: Summary) -> dict[str, float]:
    """Those for which a line at their height leaves most of the plot to the curve over tau."""
    fits = [summary.settings[m].test_perplexity for m in summary.fits]
    room = 0.8 * (max(fits) - min(fits))
    return {name: v for name, v in references(summary).items() if min(fits) - room <= v <= max(fits) + room}


def improvement_data(analysis: Analysis) -> BySize | None:
    """Figure 3: how far the best fit lies below either end for each task; None without an end to compare with."""
    if not analysis.task_gains:
        return None
    points, lines, series = [], [], {}
    for reference, marker, shift in (("independent", "circle", -1), ("shared", "triangle-up", 1)):
        gains = gains_against(analysis.task_gains, reference)
        if gains:
            series[reference] = Series(reference, reference, marker, f"against {END_NAMES[reference]}", shift)
            lines.append(_line_data(reference, analysis.trends.get(f"improvement_{reference}")))
        for gain in gains:
            ends = (gain.interval.low, gain.interval.high)
            is_open = gain.verdict == UNKNOWN
            points.append((reference, gain.task, gain.train_documents, gain.interval.estimate, *ends, is_open))
    columns = ["series", "task", "documents", "value", "low", "high", "is_open"]
    return BySize(
        y_title="Reduction of test perplexity",
        is_percent=True,
        series=series,
        points=pd.DataFrame(points, columns=columns),
        lines=pd.concat(lines),
    )


def distance_data(analysis: Analysis) -> BySize | None:
    """Figure 4: L2 distance of each task's adapter to the global one; None without a fit between the ends."""
    summary, m = analysis.summary, analysis.summary.best_between
    if m is None or np.isnan(summary.distance_DM[:, m]).all():
        return None
    trend = analysis.trends.get("distance")
    return _single_series(summary, "Distance to the global adapter", summary.distance_DM[:, m], trend=trend)


def perplexity_data(analysis: Analysis) -> BySize:
    """Figure 5: test perplexity of each task under the best fit, with 95% intervals."""
    summary, m = analysis.summary, analysis.summary.best
    low_D, high_D = (bound_DM[:, m] for bound_DM in analysis.task_levels.perplexity_bounds)
    trend = analysis.trends.get("perplexity")
    return _single_series(summary, "Test perplexity", summary.perplexity_DM[:, m], low_D, high_D, trend=trend)


def _single_series(
    summary: Summary,
    y_title: str,
    values_D: np.ndarray,
    low_D: np.ndarray | float = math.nan,
    high_D: np.ndarray | float = math.nan,
    *,
    trend: Trend | None,
) -> BySize:
    columns = {"documents": summary.train_documents_D, "value": values_D, "low": low_D, "high": high_D}
    points = pd.DataFrame({"series": "best", "task": summary.tasks, **columns, "is_open": False})
    return BySize(y_title, False, {"best": Series("best", "ink", "circle")}, points, _line_data("best", trend))


def _line_data(series: str, trend: Trend | None) -> pd.DataFrame:
    if trend is None:
        return pd.DataFrame(columns=["series", "documents", "value", "low", "high"])
    documents_G = np.geomspace(trend.low_documents, trend.high_documents, _LINE_POINTS)
    value_G, low_G, high_G = trend.line(documents_G)
    return pd.DataFrame({"series": series, "documents": documents_G, "value": value_G, "low": low_G, "high": high_G})
