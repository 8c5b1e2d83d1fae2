"""Which figures a report shows, what each is called, and what its caption says."""

import math
from dataclasses import dataclass

import numpy as np

from bora_sweep.report import figures
from bora_sweep.report.formats import perplexity_text, tau_text
from bora_sweep.report.gains import Gain
from bora_sweep.report.pooling import Summary
from bora_sweep.report.statistics import Bootstrap
from bora_sweep.report.tables import shown_fits


@dataclass(frozen=True)
class Illustration:
    """A figure (None where the results do not hold one) with its file's name, alternative text and caption."""

    name: str
    figure: figures.Figure | None
    alt: str
    caption: str


def illustrate(summary: Summary, bootstrap: Bootstrap, gains: list[Gain]) -> list[Illustration]:
    """Figures 1 to 5, in order."""
    return [
        _task_sizes(summary),
        _tau_curve(summary, bootstrap),
        _improvement(summary, gains),
        _distance(summary),
        _perplexity_by_size(summary),
    ]


def _task_sizes(summary: Summary) -> Illustration:
    sizes_D = summary.train_documents_D
    spread = f"from {sizes_D.min():,.0f} to {sizes_D.max():,.0f}, median {np.median(sizes_D):,.0f}"
    return Illustration(
        "figure_1_task_sizes",
        figures.task_sizes(summary),
        f"Bars of the number of training documents of {len(sizes_D):,} tasks, sorted, {spread}.",
        f"Training documents of each of {len(sizes_D):,} tasks: {spread}.",
    )


def _tau_curve(summary: Summary, bootstrap: Bootstrap) -> Illustration:
    fits = [summary.settings[m] for m in shown_fits(summary)]
    values = "; ".join(f"{perplexity_text(fit.test_perplexity)} at τ = {tau_text(fit.tau)}" for fit in fits)
    in_view = figures.references_in_view(summary)
    beyond = [f"{k} {perplexity_text(v)}" for k, v in figures.references(summary).items() if k not in in_view]
    return Illustration(
        "figure_2_tau_perplexity",
        figures.tau_curve(summary, bootstrap),
        f"Line plot of test perplexity over the precision τ, {values}.",
        "Precision τ against test perplexity. Thick line: all tokens of all tasks; thin grey lines: each task. The "
        "ends, beyond the breaks of the axis, are one model per task (τ = 0, square) and one model for all (τ = ∞, "
        "triangle); the diamond is the best on validation. The band holds the 95% bootstrap interval of each τ taken "
        "alone; differences between values of τ are paired, and so surer than the band suggests (Table 1)."
        + (" Other methods, ranks and variants are in *Methods compared*." if summary.others else "")
        + (f" Outside the plot: {', '.join(beyond)}." if beyond else ""),
    )


def _improvement(summary: Summary, gains: list[Gain]) -> Illustration:
    best = f"the best fit (τ = {tau_text(summary.best_tau)})"
    name, alt = "figure_3_improvement", f"Scatter plot of each task's gain by {best} against its training documents."
    if not gains:
        return Illustration(name, None, alt, "Needs a finished fit at τ = 0 or τ = ∞ beside the best one.")
    told = []
    for reference, mark in (("independent", "blue circles"), ("shared", "red triangles")):
        part = [gain for gain in gains if gain.reference == reference]
        if part:
            better = sum(gain.interval.estimate > 0 for gain in part)
            above, below = sum(gain.interval.low > 0 for gain in part), sum(gain.interval.high < 0 for gain in part)
            told.append(
                f"Against {part[0].reference_in_words}, {mark}, perplexity is lower in {better:,} of {len(part):,} "
                f"tasks; the task's own 95% interval lies above 0 in {above:,} and below 0 in {below:,}."
            )
    bars = "Bars are those intervals, not" if len(summary.tasks) <= figures.MOST_NAMES else "The intervals are not"
    return Illustration(
        name,
        figures.improvement_by_size(gains),
        alt,
        f"How far {best} lies below either end in test perplexity, by the task's number of training documents. "
        f"{' '.join(told)} {bars} adjusted for the number of tasks. [As numbers](tables/improvements.csv).",
    )


def _distance(summary: Summary) -> Illustration:
    name, alt = "figure_4_distance", "Scatter plot of each task's distance to the global adapter against its size."
    m = summary.best_between
    if m is None or np.isnan(summary.distance_DM[:, m]).all():
        return Illustration(name, None, alt, "Needs a fit with 0 < τ < ∞, whose tasks differ and yet share.")
    why = {0.0: "shares nothing", math.inf: "has no deviations"}.get(summary.best_tau)
    instead = f" The best fit, τ = {tau_text(summary.best_tau)}, {why}; this is the best between the ends."
    return Illustration(
        name,
        figures.by_size(summary.train_documents_D, summary.distance_DM[:, m], "Distance to the global adapter"),
        alt,
        f"L2 distance between each task's adapter and the global one at τ = {tau_text(summary.settings[m].tau)}, "
        f"against the task's number of training documents.{instead if why else ''}",
    )


def _perplexity_by_size(summary: Summary) -> Illustration:
    best = f"the best fit (τ = {tau_text(summary.best_tau)})"
    return Illustration(
        "figure_5_perplexity_by_size",
        figures.by_size(summary.train_documents_D, summary.perplexity_DM[:, summary.best], "Test perplexity"),
        f"Scatter plot of each task's test perplexity under {best} against its number of training documents.",
        f"Number of training documents of each task against its test perplexity under {best}.",
    )
