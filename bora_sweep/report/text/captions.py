"""Which figures a report shows, what each is called, and what its caption says."""

import math
from dataclasses import dataclass

import numpy as np

from bora_sweep.report.figures.data import (
    Figure,
    distance_data,
    improvement_data,
    perplexity_data,
    references,
    references_in_view,
    task_sizes_data,
    tau_curve_data,
)
from bora_sweep.report.figures.style import MOST_NAMES
from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.summary import Summary
from bora_sweep.report.stats.trends import Trend
from bora_sweep.report.text.answer import verdict_counts
from bora_sweep.report.text.formats import percent_text, perplexity_text, tau_text
from bora_sweep.report.text.tables import shown_fits


@dataclass(frozen=True)
class Illustration:
    """A figure with its file's name, alternative text and caption."""

    name: str
    data: Figure | None
    """What it shows; None where the results do not hold it."""
    alt: str
    caption: str


def illustrate(analysis: Analysis) -> list[Illustration]:
    """Figures 1 to 5, in order."""
    return [
        _task_sizes(analysis.summary),
        _tau_curve(analysis),
        _improvement(analysis),
        _distance(analysis),
        _perplexity_by_size(analysis),
    ]


def _task_sizes(summary: Summary) -> Illustration:
    sizes_D = summary.train_documents_D
    spread = f"from {sizes_D.min():,.0f} to {sizes_D.max():,.0f}, median {np.median(sizes_D):,.0f}"
    return Illustration(
        "figure_1_task_sizes",
        task_sizes_data(summary),
        f"Bars of the number of training documents of {len(sizes_D):,} tasks, sorted, {spread}.",
        f"Training documents of each of {len(sizes_D):,} tasks: {spread}.",
    )


def _tau_curve(analysis: Analysis) -> Illustration:
    summary = analysis.summary
    fits = [summary.settings[m] for m in shown_fits(summary)]
    values = "; ".join(f"{perplexity_text(fit.test_perplexity)} at τ = {tau_text(fit.tau)}" for fit in fits)
    in_view = references_in_view(summary)
    beyond = [f"{k} {perplexity_text(v)}" for k, v in references(summary).items() if k not in in_view]
    return Illustration(
        "figure_2_tau_perplexity",
        tau_curve_data(analysis),
        f"Line plot of test perplexity over the precision τ, {values}.",
        f"Precision τ against test perplexity. {_line_text(analysis)}; thin grey lines: each task. The "
        "ends, beyond the breaks of the axis, are one model per task (τ = 0, square) and one model for all (τ = ∞, "
        "triangle); the diamond is the best on validation. The pale band holds the 95% interval of each τ taken "
        "alone; differences between values of τ are paired, and so surer than it suggests (Table 1)."
        + _marks_text(analysis)
        + (" Other methods, ranks and variants are in *Methods compared*." if summary.others else "")
        + (f" Outside the plot: {', '.join(beyond)}." if beyond else "")
        + (" [The curve as numbers](tables/curve.csv)." if analysis.curve else ""),
    )


def _line_text(analysis: Analysis) -> str:
    if analysis.curve is None:
        return "Thick line: all tokens of all tasks"
    return (
        "Dots: all tokens of all tasks; thick line: a smooth curve through those between the ends (a Gaussian process "
        "on log τ), whose darker band holds the 95% interval of its shape, but not of how high it lies"
    )


def _marks_text(analysis: Analysis) -> str:
    choice, told = analysis.choice, ""
    if choice.one_standard_error != choice.minimum:
        tau = tau_text(analysis.summary.settings[choice.one_standard_error].tau)
        told += f" The open diamond is the one-standard-error choice, τ = {tau}."
    if choice.curve is not None:
        low, high = tau_text(choice.curve.as_good.low), tau_text(choice.curve.as_good.high)
        told += f" The bar on the axis holds the τ that validation does not tell from the best, {low} to {high}."
    return told


def _improvement(analysis: Analysis) -> Illustration:
    summary, gains = analysis.summary, analysis.task_gains
    best = f"the best fit (τ = {tau_text(summary.best_tau)})"
    name, alt = "figure_3_improvement", f"Scatter plot of each task's gain by {best} against its training documents."
    if not gains:
        return Illustration(name, None, alt, "Needs a finished fit at τ = 0 or τ = ∞ beside the best one.")
    told = []
    for reference, mark in (("independent", "blue circles"), ("shared", "red triangles")):
        part = [gain for gain in gains if gain.reference == reference]
        if part:
            better = sum(gain.interval.estimate > 0 for gain in part)
            told.append(
                f"Against {part[0].reference_in_words}, {mark}, perplexity is lower in {better:,} of {len(part):,} "
                f"tasks; by the tests of Table 2 {verdict_counts(part)} (filled marks: a verdict). "
                f"{_improvement_trend(analysis, reference)}"
            )
    bars = "Bars are each task's own 95% intervals. " if len(summary.tasks) <= MOST_NAMES else ""
    return Illustration(
        name,
        improvement_data(analysis),
        alt,
        f"How far {best} lies below either end in test perplexity, by the task's number of training documents. "
        f"{' '.join(told)} {bars}Lines are least squares on the logarithm of the documents, with 95% bands over tasks. "
        "[As numbers](tables/improvements.csv), [lines](tables/trends.csv).",
    )


def _improvement_trend(analysis: Analysis, reference: str) -> str:
    line = analysis.trends.get(f"improvement_{reference}")
    if line is None:
        return ""
    slope = percent_text(line.slope, unit=" points")
    said = "no evidence that the gain depends on the amount of data"
    if line.slope.excludes_zero:
        said = "it grows as data shrinks" if line.slope.estimate < 0 else "it grows with data"
    return f"Each doubling of the training documents changes the gain by {slope}: {said}."


def _power_law(line: Trend | None, quantity: str) -> str:
    if line is None:
        return ""
    said = f"no evidence that {quantity} depends on the amount of data"
    if line.slope.excludes_zero:
        said = "it grows with data" if line.slope.estimate > 0 else "it falls with data"
    return (
        f" The line, a power law by least squares of the logarithms with its 95% band over tasks: each doubling of the "
        f"training documents changes {quantity} by {percent_text(line.slope)}; {said}. "
        "[As numbers](tables/trends.csv)."
    )


def _distance(analysis: Analysis) -> Illustration:
    summary, line = analysis.summary, analysis.trends.get("distance")
    name, alt = "figure_4_distance", "Scatter plot of each task's distance to the global adapter against its size."
    m, data = summary.best_between, distance_data(analysis)
    if m is None or data is None:
        return Illustration(name, None, alt, "Needs a fit with 0 < τ < ∞, whose tasks differ and yet share.")
    why = {0.0: "shares nothing", math.inf: "has no deviations"}.get(summary.best_tau)
    instead = f" The best fit, τ = {tau_text(summary.best_tau)}, {why}; this is the best between the ends."
    return Illustration(
        name,
        data,
        alt,
        f"L2 distance between each task's adapter and the global one at τ = {tau_text(summary.settings[m].tau)}, "
        f"against the task's number of training documents.{instead if why else ''}{_power_law(line, 'the distance')}",
    )


def _perplexity_by_size(analysis: Analysis) -> Illustration:
    summary, line = analysis.summary, analysis.trends.get("perplexity")
    best = f"the best fit (τ = {tau_text(summary.best_tau)})"
    bars = " Bars are 95% intervals." if len(summary.tasks) <= MOST_NAMES else ""
    return Illustration(
        "figure_5_perplexity_by_size",
        perplexity_data(analysis),
        f"Scatter plot of each task's test perplexity under {best} against its number of training documents.",
        f"Number of training documents of each task against its test perplexity under {best}.{bars}"
        f"{_power_law(line, 'the perplexity')}",
    )
