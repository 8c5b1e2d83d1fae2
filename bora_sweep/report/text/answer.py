"""The first lines of a report: the best tau, how much better it is than either end, and how many tasks gain."""

import math

from bora_sweep.config import PERPLEXITY
from bora_sweep.errors import plural
from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.gains import END_NAMES, Gain, gains_against
from bora_sweep.report.stats.interval import Interval
from bora_sweep.report.stats.method_comparison import Method
from bora_sweep.report.stats.significance import ALPHA, GAINS, LOSES, UNKNOWN
from bora_sweep.report.stats.summary import Summary
from bora_sweep.report.text.formats import (
    difference_text,
    interval_text,
    level_text,
    markdown_text,
    percent_text,
    perplexity_text,
    tau_text,
)
from bora_sweep.report.text.measured import chosen_by, coverage, label, suffix
from bora_sweep.report.text.setting_names import method_name


def answer(analysis: Analysis) -> str:
    """The best tau, its level on test, and how far that lies from either end."""
    summary, measure, differences = analysis.summary, analysis.measure, []
    level = level_text(measure)(float(analysis.scores.test_M[summary.best]))
    for gain in analysis.gains:
        is_better = gain.interval.estimate >= 0
        size, side = (gain.interval, measure.better_side) if is_better else (-gain.interval, measure.worse_side)
        differences.append(f"{difference_text(size, measure, signed=False)} {side} {gain.reference_in_words}")
    sentence = f"τ = {tau_text(summary.best_tau)} gives test {label(measure)} {level}{': ' if differences else ''}"
    lines = [f"**{sentence}{', '.join(differences)}.**"]
    if analysis.gains:
        lines.append("Brackets hold 95% paired-bootstrap intervals.")
    for gain in analysis.gains:
        lines.append(f"The interval against {gain.reference_in_words} {_result(gain.interval)}.")
    return " ".join(lines)


def _result(interval: Interval) -> str:
    if math.isnan(interval.low):
        return "is not known: no two test documents of a task differ in it"
    return "excludes 0" if interval.excludes_zero else "includes 0: the test documents do not show a difference"


def where_best_tau_lies(summary: Summary) -> str:
    """How the best tau was chosen, and where it lies among the fitted values."""
    taus = [summary.settings[m].tau for m in summary.fits]
    rule = f"Validation documents chose τ{chosen_by(summary)}; the test documents are only reported."
    if len(taus) == 1:
        return f"{rule} It is the only value fitted."
    i = taus.index(summary.best_tau)
    if 0 < i < len(taus) - 1:
        if all(0 < tau < math.inf for tau in (taus[i - 1], taus[i + 1])):
            neighbours = f"{tau_text(taus[i - 1])} and {tau_text(taus[i + 1])}"
            return f"{rule} The best value lies inside the fitted range, between {neighbours}."
        return f"{rule} The best value is {_beside_an_end(taus, i)}."
    meaning = {0.0: ": no sharing between tasks", math.inf: ": one model for all tasks"}.get(summary.best_tau, "")
    return f"{rule} The best value is at an end of the fitted range (τ = {tau_text(summary.best_tau)}{meaning})."


def _beside_an_end(taus: list[float], i: int) -> str:
    """Where a value lies that has 0 or infinity beside it: nothing was tried between the two."""
    is_lowest, is_highest = taus[i - 1] == 0, taus[i + 1] == math.inf
    if is_lowest and is_highest:
        return "the only one fitted between 0 and ∞"
    return "the lowest fitted above 0" if is_lowest else "the highest finite one fitted"


def best_method(summary: Summary, methods: list[Method]) -> str:
    """The method that is best on validation; empty where none were compared."""
    if not methods:
        return ""
    best = min(methods, key=lambda method: summary.settings[method.setting].order)
    by = chosen_by(summary)
    return f"Of the methods compared, the best on validation{by} is: {markdown_text(method_name(summary, best))}."


def tasks_that_gain(analysis: Analysis) -> str:
    """How many tasks gain and lose against each end; empty where there is no end to compare with."""
    counts = []
    for reference, name in END_NAMES.items():
        gains = gains_against(analysis.task_gains, reference)
        if gains:
            counts.append(f"Against {name}, {verdict_counts(gains)}.")
    where = "Table 2" if analysis.chose_tau else f"[as numbers](tables/improvements{suffix(analysis)}.csv)"
    correction = f"({where}; Holm's correction, family-wise error rate {ALPHA:.0%}.)"
    return " ".join(filter(None, ["*Task by task.*", coverage(analysis), *counts, correction])) if counts else ""


def tasks_without_text(summary: Summary) -> str:
    """What a task that no fit has seen can expect; empty where no fit left tasks out."""
    unseen, zero_shot = summary.unseen, summary.zero_shot
    if unseen is None:
        return ""
    is_above = unseen.above_own.estimate >= 0
    size, side = (unseen.above_own, "above") if is_above else (-unseen.above_own, "below")
    base = ""
    if zero_shot is not None:
        base = f"; the base model alone has {perplexity_text(float(summary.scores[PERPLEXITY].test_M[zero_shot]))}"
    return (
        f"*Tasks without text.* A task without any text, served by `_global`, can expect a test perplexity of "
        f"{interval_text(unseen.level)}, by leaving {unseen.num_tasks:,} tasks out of the fit in turn: "
        f"{percent_text(size, signed=False)} {side} the {perplexity_text(unseen.own)} that they have with text of "
        f"their own{base}. These intervals are over tasks."
    )


def verdict_counts(gains: list[Gain]) -> str:
    """`5 of 12 tasks gain, 1 loses, and 6 show no evidence of either`."""
    gain, lose, unknown = (sum(g.verdict == verdict for g in gains) for verdict in (GAINS, LOSES, UNKNOWN))
    return (
        f"{gain:,} of {plural(len(gains), 'task')} {GAINS if gain == 1 else 'gain'}, "
        f"{lose:,} {LOSES if lose == 1 else 'lose'}, and {unknown:,} {'shows' if unknown == 1 else 'show'} "
        "no evidence of either"
    )
