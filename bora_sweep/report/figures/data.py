"""What each figure shows, as DataFrames made once: matplotlib draws them for `report.md`, Vega for the page.

D tasks in the order of `Summary.tasks`, V fits in ascending tau.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from bora_sweep.errors import plural
from bora_sweep.report.figures.style import MOST_NAMES
from bora_sweep.report.figures.tau_axis import TauAxis
from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.gains import END_NAMES, gains_against
from bora_sweep.report.stats.many_tasks import drawn_tasks
from bora_sweep.report.stats.measure import Measure
from bora_sweep.report.stats.significance import UNKNOWN
from bora_sweep.report.stats.smooth_curve import SmoothCurve
from bora_sweep.report.stats.summary import Summary
from bora_sweep.report.stats.trends import Trend
from bora_sweep.report.text.formats import level_text, tau_text
from bora_sweep.report.text.measured import better, plain_label

ROLES = {"independent": "square", "shared": "triangle-up", "best": "diamond"}
"""The marks of tau = 0, of tau = inf and of the best fit; their colors are the palette's by the same names."""
_LINE_POINTS = 100
_GROUPS = 20  # rows of Figure 6 where tasks are too many for a row each


@dataclass(frozen=True)
class Quantity:
    """What a vertical axis shows."""

    title: str
    unit: Literal["number", "percent", "points"]
    """`percent` and `points`: fractions of 1, whose texts are percentages, with and without the sign."""
    is_change: bool = False
    """Around a line at 0, with signs."""
    may_be_log: bool = False
    """On logarithms, where values span much."""
    is_better_above: bool = False
    """Higher is better: the best lies above what is around it."""


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
    """A row for each of the V fits: `setting`, `tau`, `x` on the axis, the `level` on test with the interval `low` and
    `high`, `role` (a key of `ROLES`, or empty), and whether it is the `one_standard_error` choice beside the best."""
    smooth: pd.DataFrame
    """The smooth curve through the fits between the ends: `x`, `level`, `low`, `high`; maybe empty."""
    references: pd.DataFrame
    """Horizontal lines that fit the plot: `name` (zero-shot, floor), `level`, `text`."""
    as_good: tuple[float, float] | None
    """From where to where on the axis validation does not tell tau from the best."""
    best_text: str
    tasks_DV: np.ndarray
    """Level of each task that has test documents."""
    drawn: list[int]
    """Its rows whose curves are drawn, see `drawn_tasks`."""
    y: Quantity

    @property
    def each_title(self) -> str:
        """Above the curves of single tasks."""
        drawn, tasks = len(self.drawn), plural(len(self.tasks_DV), "task")
        return f"Each of {tasks}" if drawn == len(self.tasks_DV) else f"{drawn:,} of {tasks}"


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

    y: Quantity
    series: dict[str, Series]
    points: pd.DataFrame
    """Of the tasks that are drawn (`drawn_tasks`): `series`, `task`, `documents`, `value`, its interval `low`, `high`
    (NaN without), and `is_open`: a mark that is not filled, for a task without a verdict."""
    lines: pd.DataFrame
    """Regression lines with their bands: `series`, `documents`, `value`, `low`, `high`; maybe empty."""

    @property
    def places(self) -> dict[str, int] | None:
        """Where each task stands if all have as many documents, 1, 2, … by ascending value; None if sizes differ.

        Against one size all points would lie on one another.
        """
        if len(set(self.points["documents"])) != 1:
            return None
        first = self.points.drop_duplicates("task").sort_values("value", kind="stable")
        return {task: place for place, task in enumerate(first["task"], start=1)}

    @property
    def x_title(self) -> str:
        """Of the horizontal axis."""
        if self.places is None:
            return "Training documents of the task"
        return f"Tasks, each with {plural(int(self.points['documents'].iloc[0]), 'training document')}"


@dataclass(frozen=True)
class Poolings:
    """Figure 6: no, partial and complete pooling side by side, a row for each task or group of tasks."""

    rows: pd.DataFrame
    """Most training documents first. `text`: the task, or which tasks of similar size the row is the mean of;
    `documents` (mean), `tasks` (how many), the levels on test `independent`, `best` with its interval `low`, `high`,
    and `shared`; `factor`: the pooling factor, NaN where it is not known and for a group."""
    tau: float
    """Of partial pooling."""
    x: Quantity

    @property
    def is_grouped(self) -> bool:
        """A row is the mean of several tasks."""
        return self.rows["tasks"].to_numpy().max() > 1

    @property
    def has_factors(self) -> bool:
        """The pooling factor of some row is known."""
        return not np.isnan(self.rows["factor"].to_numpy(float)).all()


FigureData = TaskSizes | TauCurve | BySize | Poolings


def task_sizes_data(summary: Summary) -> TaskSizes:
    """Figure 1: training documents of each task."""
    return TaskSizes(pd.DataFrame({"task": summary.tasks, "documents": summary.train_documents_D}))


def tau_curve_data(analysis: Analysis) -> TauCurve:
    """Figure 2: the level on test over tau, of all tasks together and of each."""
    summary, choice, scores = analysis.summary, analysis.choice, analysis.scores
    axis = TauAxis([summary.settings[m].tau for m in summary.fits])
    roles = {summary.independent: "independent", summary.shared: "shared", summary.best: "best"}
    rows = []
    for x, m in zip(axis.x, summary.fits, strict=True):
        fit, interval = summary.settings[m], analysis.bootstrap.level(m)
        is_simpler = m == choice.one_standard_error != choice.minimum
        values = (scores.test_M[m], interval.low, interval.high)
        rows.append((m, fit.tau, x, *values, roles.get(m, ""), is_simpler))
    columns = ["setting", "tau", "x", "level", "low", "high", "role", "one_standard_error"]
    as_good = None if choice.curve is None else choice.curve.as_good
    text = level_text(analysis.measure)
    lines = [(name, value, f"{name} {text(value)}") for name, value in references_in_view(analysis).items()]
    return TauCurve(
        axis=axis,
        fits=pd.DataFrame(rows, columns=columns),
        smooth=_smooth_data(analysis.curve, analysis.measure),
        references=pd.DataFrame(lines, columns=["name", "level", "text"]),
        as_good=None if as_good is None else (math.log10(as_good.low), math.log10(as_good.high)),
        best_text=f"best: τ = {tau_text(summary.best_tau)}",
        tasks_DV=scores.test_DM[analysis.tested][:, summary.fits],
        drawn=np.searchsorted(analysis.tested, drawn_tasks(analysis)).tolist(),
        y=level_quantity(analysis),
    )


def level_quantity(analysis: Analysis) -> Quantity:
    """The level on test."""
    unit = "percent" if analysis.measure.unit == "share" else "number"
    name = f"Test {plain_label(analysis.measure)}{better(analysis)}"
    is_metric = analysis.measure.is_metric
    return Quantity(name, unit, may_be_log=not is_metric, is_better_above=is_metric)


def change_quantity(analysis: Analysis, change: str) -> Quantity:
    """A change or a gain of the level on test, `change` in words."""
    if analysis.measure.unit == "share":
        return Quantity(f"{change}, points", "points", is_change=True)
    return Quantity(change, "percent" if analysis.measure.unit == "perplexity" else "number", is_change=True)


def _smooth_data(curve: SmoothCurve | None, measure: Measure) -> pd.DataFrame:
    if curve is None:
        return pd.DataFrame(columns=["x", "level", "low", "high"], dtype=float)
    low_G, high_G = measure.level_bounds(*curve.band)
    levels = {"level": measure.level(curve.value_G), "low": low_G, "high": high_G}
    return pd.DataFrame({"x": np.log10(curve.tau_G)} | levels)


def references(analysis: Analysis) -> dict[str, float]:
    """Level on test of the zero-shot model and of the true source, where they are known."""
    m = analysis.summary.zero_shot
    zero_shot = math.nan if m is None else float(analysis.scores.test_M[m])
    return {name: value for name, value in (("zero-shot", zero_shot), ("floor", analysis.floor)) if value == value}


def references_in_view(analysis: Analysis) -> dict[str, float]:
    """Those for which a line at their height leaves most of the plot to the curve over tau."""
    fits = analysis.scores.test_M[analysis.summary.fits].tolist()
    room = 0.8 * (max(fits) - min(fits))
    return {name: v for name, v in references(analysis).items() if min(fits) - room <= v <= max(fits) + room}


def improvement_data(analysis: Analysis) -> BySize | None:
    """Figure 3: the gain of the best fit over either end for each task; None without an end to compare with."""
    if not analysis.task_gains:
        return None
    points, lines, series, measure = [], [], {}, analysis.measure
    drawn = {analysis.summary.tasks[d] for d in drawn_tasks(analysis)}
    for reference, marker, shift in (("independent", "circle", -1), ("shared", "triangle-up", 1)):
        gains = gains_against(analysis.task_gains, reference)
        if gains:
            series[reference] = Series(reference, reference, marker, f"against {END_NAMES[reference]}", shift)
            lines.append(_line_data(reference, analysis.trends.get(f"improvement_{reference}")))
        for gain in gains:
            if gain.task not in drawn:
                continue
            ends = (gain.interval.low, gain.interval.high)
            is_open = gain.verdict == UNKNOWN
            points.append((reference, gain.task, gain.train_documents, gain.interval.estimate, *ends, is_open))
    columns = ["series", "task", "documents", "value", "low", "high", "is_open"]
    return BySize(
        y=change_quantity(analysis, f"{'Gain' if measure.is_metric else 'Reduction'} of test {plain_label(measure)}"),
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
    tau = tau_text(summary.settings[m].tau)
    y = Quantity(f"Distance to the global adapter at τ = {tau}", "number", may_be_log=True)
    distance_D = summary.distance_DM[:, m]
    return _single_series(analysis, y, ~np.isnan(distance_D), distance_D, trend=trend)


def level_data(analysis: Analysis) -> BySize:
    """Figure 5: level on test of each task under the best fit, with 95% intervals."""
    measure, m = analysis.measure, analysis.summary.best
    low_D, high_D = (bound_DM[:, m] for bound_DM in analysis.task_levels.level_bounds())
    level_D, trend = analysis.scores.test_DM[:, m], analysis.trends.get(measure.name)
    data = _single_series(analysis, level_quantity(analysis), analysis.tested_D, level_D, low_D, high_D, trend=trend)
    return replace(data, lines=data.lines.assign(**data.lines[["value", "low", "high"]].clip(*measure.limits)))


def pooling_data(analysis: Analysis) -> Poolings | None:
    """Figure 6: levels on test under the fits at both ends and the best between; None without these three.

    More than `MOST_NAMES` tasks are told by groups of similar size, of about as many tasks each.
    """
    summary, found = analysis.summary, analysis.pooling
    if found is None:
        return None
    groups = np.array_split(analysis.tested, len(analysis.tested))
    if len(analysis.tested) > MOST_NAMES:
        groups = np.array_split(analysis.tested, _GROUPS)
    rows = []
    for group in groups:
        tasks = group.tolist()
        no, partial, complete = (analysis.macro(m, tasks) for m in found.settings)
        sizes = summary.train_documents_D[tasks]
        text = summary.tasks[tasks[0]] if len(tasks) == 1 else _sizes_text(sizes)
        factor = found.tasks[tasks[0]].estimate if len(tasks) == 1 else math.nan
        levels = (no.estimate, partial.estimate, partial.low, partial.high, complete.estimate)
        rows.append((text, float(sizes.mean()), len(tasks), *levels, factor))
    columns = ["text", "documents", "tasks", "independent", "best", "low", "high", "shared", "factor"]
    rows = pd.DataFrame(rows, columns=columns)
    return Poolings(rows, summary.settings[found.partial].tau, level_quantity(analysis))


def _sizes_text(sizes: np.ndarray) -> str:
    """`41 to 60 documents, 12 tasks`."""
    low, high = sizes.min(), sizes.max()
    documents = plural(int(high), "document") if low == high else f"{low:,.0f} to {plural(int(high), 'document')}"
    return f"{documents}, {plural(len(sizes), 'task')}"


def _single_series(
    analysis: Analysis,
    y: Quantity,
    is_known_D: np.ndarray,
    values_D: np.ndarray,
    low_D: np.ndarray | float = math.nan,
    high_D: np.ndarray | float = math.nan,
    *,
    trend: Trend | None,
) -> BySize:
    summary, drawn = analysis.summary, drawn_tasks(analysis)
    columns = {"documents": summary.train_documents_D, "value": values_D, "low": low_D, "high": high_D}
    points = pd.DataFrame({"series": "best", "task": summary.tasks, **columns, "is_open": False}).iloc[drawn]
    points = points.loc[is_known_D[drawn]]
    return BySize(y, {"best": Series("best", "ink", "circle")}, points, _line_data("best", trend))


def _line_data(series: str, trend: Trend | None) -> pd.DataFrame:
    if trend is None:
        return pd.DataFrame(columns=["series", "documents", "value", "low", "high"])
    documents_G = np.geomspace(trend.low_documents, trend.high_documents, _LINE_POINTS)
    value_G, low_G, high_G = trend.line(documents_G)
    return pd.DataFrame({"series": series, "documents": documents_G, "value": value_G, "low": low_G, "high": high_G})
