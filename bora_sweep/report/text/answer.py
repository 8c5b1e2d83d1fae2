"""The first lines of a report: the best tau, how far it lies below either end, and how many tasks gain."""

import math

from bora_sweep.errors import plural
from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.gains import END_NAMES, Gain, gains_against
from bora_sweep.report.stats.method_comparison import Method
from bora_sweep.report.stats.significance import ALPHA, GAINS, LOSES, UNKNOWN
from bora_sweep.report.stats.summary import Summary
from bora_sweep.report.text.formats import markdown_text, percent_text, perplexity_text, tau_text
from bora_sweep.report.text.setting_names import method_name


def answer(analysis: Analysis) -> str:
    """The best tau, its test perplexity, and how far that lies below either end."""
    summary, differences = analysis.summary, []
    perplexity = perplexity_text(summary.settings[summary.best].test_perplexity)
    for gain in analysis.gains:
        size, side = (gain.interval, "below") if gain.interval.estimate >= 0 else (-gain.interval, "above")
        differences.append(f"{percent_text(size, signed=False)} {side} {gain.reference_in_words}")
    sentence = f"τ = {tau_text(summary.best_tau)} gives test perplexity {perplexity}{': ' if differences else ''}"
    lines = [f"**{sentence}{', '.join(differences)}.**"]
    if analysis.gains:
        lines.append("Brackets hold 95% paired-bootstrap intervals.")
    for gain in analysis.gains:
        excludes, includes = "excludes 0", "includes 0: the test documents do not show a difference"
        result = excludes if gain.interval.excludes_zero else includes
        lines.append(f"The interval against {gain.reference_in_words} {result}.")
    return " ".join(lines)


def where_best_tau_lies(summary: Summary) -> str:
    """How the best tau was chosen, and where it lies among the fitted values."""
    taus = [summary.settings[m].tau for m in summary.fits]
    rule = "Validation documents chose τ; the test documents are only reported."
    if len(taus) == 1:
        return f"{rule} It is the only value fitted."
    i = taus.index(summary.best_tau)
    if 0 < i < len(taus) - 1:
        neighbours = f"{tau_text(taus[i - 1])} and {tau_text(taus[i + 1])}"
        return f"{rule} The best value lies inside the fitted range, between {neighbours}."
    meaning = {0.0: ": no sharing between tasks", math.inf: ": one model for all tasks"}.get(summary.best_tau, "")
    return f"{rule} The best value is at an end of the fitted range (τ = {tau_text(summary.best_tau)}{meaning})."


def best_method(summary: Summary, methods: list[Method]) -> str:
    """The method with the lowest validation perplexity; empty where none were compared."""
    if not methods:
        return ""
    best = min(methods, key=lambda method: summary.settings[method.setting].objective)
    return f"Of the methods compared, the best on validation is: {markdown_text(method_name(summary, best))}."


def tasks_that_gain(analysis: Analysis) -> str:
    """How many tasks gain and lose against each end; empty where there is no end to compare with."""
    counts = []
    for reference, name in END_NAMES.items():
        gains = gains_against(analysis.task_gains, reference)
        if gains:
            counts.append(f"Against {name}, {verdict_counts(gains)}.")
    correction = f"(Table 2; Holm's correction, family-wise error rate {ALPHA:.0%}.)"
    return f"*Task by task.* {' '.join(counts)} {correction}" if counts else ""


def verdict_counts(gains: list[Gain]) -> str:
    """`5 of 12 tasks gain, 1 loses, and 6 show no evidence of either`."""
    gain, lose, unknown = (sum(g.verdict == verdict for g in gains) for verdict in (GAINS, LOSES, UNKNOWN))
    return (
        f"{gain:,} of {plural(len(gains), 'task')} {GAINS if gain == 1 else 'gain'}, "
        f"{lose:,} {LOSES if lose == 1 else 'lose'}, and {unknown:,} {'shows' if unknown == 1 else 'show'} "
        "no evidence of either"
    )
