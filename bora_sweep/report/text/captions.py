"""Figures 1 to 6 of the report, with their file names, alternative texts and captions."""

import math
from dataclasses import dataclass

import numpy as np

from bora_sweep.errors import plural
from bora_sweep.report.figures.data import (
    BySize,
    FigureData,
    distance_data,
    improvement_data,
    level_data,
    pooling_data,
    references,
    references_in_view,
    task_sizes_data,
    tau_curve_data,
)
from bora_sweep.report.figures.style import MOST_NAMES
from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.gains import END_NAMES, gains_against
from bora_sweep.report.stats.many_tasks import drawn_tasks
from bora_sweep.report.stats.measure import Measure
from bora_sweep.report.stats.summary import Summary
from bora_sweep.report.stats.trends import Trend
from bora_sweep.report.text.answer import verdict_counts
from bora_sweep.report.text.formats import difference_text, level_text, number_text, percent_text, tau_text
from bora_sweep.report.text.measured import better, chosen_by, file_name, label, suffix
from bora_sweep.report.text.tables import shown_fits


@dataclass(frozen=True)
class CaptionedFigure:
    """A figure with its file name, alternative text and caption; `data` is None where the results do not hold it."""

    name: str
    data: FigureData | None
    alt: str
    caption: str


def captioned_figures(analysis: Analysis) -> list[CaptionedFigure]:
    """Figures 1 to 6, in order."""
    return [
        _task_sizes(analysis.summary),
        _tau_curve(analysis),
        _improvement(analysis),
        _distance(analysis),
        _level_by_size(analysis),
        _pooling(analysis),
    ]


def figures_of_other_measure(analysis: Analysis) -> list[CaptionedFigure]:
    """Figures 2 and 3 of a measure that did not choose tau."""
    return [_tau_curve(analysis), _improvement(analysis)]


def _task_sizes(summary: Summary) -> CaptionedFigure:
    sizes_D = summary.train_documents_D
    spread = f"from {sizes_D.min():,.0f} to {sizes_D.max():,.0f}, median {number_text(np.median(sizes_D))}"
    spread = f"{sizes_D.min():,.0f} each" if np.ptp(sizes_D) == 0 else spread
    return CaptionedFigure(
        "figure_1_task_sizes",
        task_sizes_data(summary),
        f"Bars of the number of training documents of {len(sizes_D):,} tasks, sorted, {spread}.",
        f"Training documents of each of {len(sizes_D):,} tasks: {spread}.",
    )


def _tau_curve(analysis: Analysis) -> CaptionedFigure:
    summary, scores, text, name = (
        analysis.summary,
        analysis.scores,
        level_text(analysis.measure),
        label(analysis.measure),
    )
    values = "; ".join(
        f"{text(float(scores.test_M[m]))} at τ = {tau_text(summary.settings[m].tau)}" for m in shown_fits(summary)
    )
    table = "Table 1" if analysis.chose_tau else "the table above"
    in_view = references_in_view(analysis)
    outside = [f"{k} {text(v)}" for k, v in references(analysis).items() if k not in in_view]
    return CaptionedFigure(
        f"figure_2_tau_{file_name(analysis)}",
        tau_curve_data(analysis),
        f"Line plot of test {name} over the precision τ, {values}.",
        f"Test {name}{better(analysis)} over the precision τ. {_line_text(analysis)} Thin grey lines: each task. The "
        "ends, beyond "
        "the breaks of the axis, are one model per task (τ = 0, square) and one model for all (τ = ∞, triangle); the "
        f"diamond is the best on validation{chosen_by(summary)}. The pale band holds the 95% interval of each τ alone; "
        f"differences between values of τ are paired and more certain than it suggests ({table})."
        + _marks_text(analysis)
        + (" Other methods, ranks and variants are in *Methods compared*." if summary.others else "")
        + (f" Outside the plot: {', '.join(outside)}." if outside else "")
        + _drawn_text(analysis)
        + (f" [The curve as numbers](tables/curve{suffix(analysis)}.csv)." if analysis.curve else ""),
    )


def _drawn_text(analysis: Analysis) -> str:
    """Which tasks are drawn; empty where all are."""
    drawn = len(drawn_tasks(analysis))
    if drawn == len(analysis.tested):
        return ""
    return (
        f" Of {len(analysis.tested):,} tasks {drawn:,} are drawn one by one: those at the ends (Tables 2 and A.1), and "
        "others spread evenly by size. Lines and numbers are of all."
    )


def _line_text(analysis: Analysis) -> str:
    pooled = "documents" if analysis.measure.is_metric else "tokens"
    if analysis.curve is None:
        return f"Thick line: all {pooled} of all tasks."
    return (
        f"Dots: all {pooled} of all tasks. Thick line: a smooth curve through the dots between the ends (a Gaussian "
        "process on log τ). Its darker band is the 95% band of the curve's shape, not of its level."
    )


def _marks_text(analysis: Analysis) -> str:
    """The marks of the one-standard-error choice and of the values that are as good as the best."""
    choice, text = analysis.choice, ""
    if choice.one_standard_error != choice.minimum:
        tau = tau_text(analysis.summary.settings[choice.one_standard_error].tau)
        text += f" The open diamond is the one-standard-error choice, τ = {tau}."
    if choice.curve is not None:
        low, high = tau_text(choice.curve.as_good.low), tau_text(choice.curve.as_good.high)
        text += " The bar on the axis holds the τ that are as good as the best on validation"
        text += f"{chosen_by(analysis.summary)}, {low} to {high}."
    return text


def _improvement(analysis: Analysis) -> CaptionedFigure:
    summary, measure, end = analysis.summary, analysis.measure, suffix(analysis)
    best = f"the best fit (τ = {tau_text(summary.best_tau)})"
    name, alt = (
        f"figure_3_improvement{end}",
        f"Scatter plot of each task's gain by {best} against its training documents.",
    )
    if not analysis.task_gains:
        return CaptionedFigure(name, None, alt, "Needs a finished fit at τ = 0 or τ = ∞ beside the best one.")
    parts = []
    for reference, marks in (("independent", "blue circles"), ("shared", "red triangles")):
        gains = gains_against(analysis.task_gains, reference)
        if gains:
            tests = "the tests of Table 2" if analysis.chose_tau else "the tests"
            gained = sum(gain.interval.estimate > 0 for gain in gains)
            parts.append(
                f"Against {END_NAMES[reference]}, {marks}: {label(measure)} is {measure.higher_or_lower} in "
                f"{gained:,} of {len(gains):,} tasks; by {tests}, {verdict_counts(gains)} (filled marks: a verdict). "
                f"{_linear_trend(analysis.trends.get(f'improvement_{reference}'), measure, 'the gain')}"
            )
    data = improvement_data(analysis)
    if len(analysis.tested) <= MOST_NAMES:
        parts.append("Bars are each task's own 95% intervals.")
    if data is not None and not data.lines.empty:
        parts.append("Lines are least squares on the logarithm of the documents, with 95% bands over tasks.")
    return CaptionedFigure(
        name,
        data,
        alt,
        f"How far the test {label(measure)}{better(analysis)} of {best} lies {measure.better_side} either end, "
        f"{_along(data)}. {' '.join(part.strip() for part in parts)}{_drawn_text(analysis)} "
        f"[As numbers](tables/improvements{end}.csv), [lines](tables/trends{end}.csv).",
    )


def _along(data: FigureData | None) -> str:
    """What the horizontal axis of Figures 3 to 5 is."""
    if not isinstance(data, BySize) or data.places is None:
        return "by the task's number of training documents"
    size = plural(int(data.points["documents"].iloc[0]), "training document")
    return f"task by task in ascending order, as each has {size}"


def _linear_trend(line: Trend | None, measure: Measure, quantity: str) -> str:
    if line is None:
        return ""
    meaning = f"no evidence that {quantity} depends on the amount of data"
    if line.slope.excludes_zero:
        meaning = "it grows as data shrinks" if line.slope.estimate < 0 else "it grows with data"
    slope = (
        difference_text(line.slope, measure) if measure.unit == "number" else percent_text(line.slope, unit=" points")
    )
    return f"Each doubling of the training documents changes {quantity} by {slope}: {meaning}."


def _power_law(line: Trend | None, quantity: str) -> str:
    if line is None:
        return ""
    meaning = f"no evidence that {quantity} depends on the amount of data"
    if line.slope.excludes_zero:
        meaning = "it grows with data" if line.slope.estimate > 0 else "it falls with data"
    return (
        " The line is a power law, least squares of the logarithms, with its 95% band over tasks. Each doubling of the "
        f"training documents changes {quantity} by {percent_text(line.slope)}: {meaning}. [As "
        "numbers](tables/trends.csv)."
    )


def _distance(analysis: Analysis) -> CaptionedFigure:
    summary, line = analysis.summary, analysis.trends.get("distance")
    name, alt = "figure_4_distance", "Scatter plot of each task's distance to the global adapter against its size."
    m, data = summary.best_between, distance_data(analysis)
    if m is None or data is None:
        return CaptionedFigure(name, None, alt, "Needs a fit with 0 < τ < ∞, where tasks differ and share.")
    reason = {0.0: "shares nothing", math.inf: "has no deviations"}.get(summary.best_tau)
    other_fit = f" The best fit, τ = {tau_text(summary.best_tau)}, {reason}; this is the best between the ends."
    return CaptionedFigure(
        name,
        data,
        alt,
        f"Euclidean distance of each task's adapter to the global one at τ = {tau_text(summary.settings[m].tau)}, "
        f"{_along(data)}.{other_fit if reason else ''}{_power_law(line, 'the distance')}{_drawn_text(analysis)}",
    )


def _level_by_size(analysis: Analysis) -> CaptionedFigure:
    summary, measure, name = analysis.summary, analysis.measure, label(analysis.measure)
    line, quantity = analysis.trends.get(measure.name), f"the {name}"
    best = f"the best fit (τ = {tau_text(summary.best_tau)})"
    bars = " Bars are 95% intervals." if len(analysis.tested) <= MOST_NAMES else ""
    trend = f" {_linear_trend(line, measure, quantity)}".rstrip() if measure.is_metric else _power_law(line, quantity)
    data = level_data(analysis)
    return CaptionedFigure(
        f"figure_5_{file_name(analysis)}_by_size",
        data,
        f"Scatter plot of each task's test {name} under {best} against its number of training documents.",
        f"Test {name}{better(analysis)} of each task under {best}, {_along(data)}.{bars}{trend}{_drawn_text(analysis)}",
    )


def _pooling(analysis: Analysis) -> CaptionedFigure:
    name, data = label(analysis.measure), pooling_data(analysis)
    alt = f"Rows of tasks by size, with test {name} of no, partial and complete pooling in each."
    if data is None:
        return CaptionedFigure("figure_6_pooling", None, alt, "Needs finished fits at τ = 0, at τ = ∞ and between.")
    is_best = analysis.summary.best_between == analysis.summary.best
    middle = "the best fit" if is_best else "the best fit between the ends"
    rows, factors = "each task, most training documents first", ""
    if data.is_grouped:
        groups = plural(len(data.rows), "group")
        rows = f"tasks by size, in {groups}, the largest tasks first; each mark is the mean of a group's tasks"
    elif data.has_factors:
        factors = "At the right, the task's pooling factor: 0, it is on its own; 1, it is as all. "
    return CaptionedFigure(
        "figure_6_pooling",
        data,
        alt,
        f"Test {name}{better(analysis)} of {rows}: without pooling (τ = 0, squares), with partial pooling (τ = "
        f"{tau_text(data.tau)}, {middle}, diamonds with 95% intervals), and with complete pooling (τ = ∞, triangles). "
        f"{factors}[As numbers](tables/pooling.csv).",
    )
