"""What a report says first: the best tau, how far it lies below either end, where it lies, and whom it serves."""

import math

from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.gains import Gain
from bora_sweep.report.stats.significance import ALPHA, GAINS, LOSES, UNKNOWN
from bora_sweep.report.stats.summary import Summary
from bora_sweep.report.text.formats import markdown_text, percent_text, perplexity_text, tau_text
from bora_sweep.report.text.methods import Method


def answer(analysis: Analysis) -> str:
    """The sentence that a sweep was made for."""
    summary, said = analysis.summary, []
    perplexity = perplexity_text(summary.settings[summary.best].test_perplexity)
    for gain in analysis.gains:
        size, side = (gain.interval, "below") if gain.interval.estimate >= 0 else (-gain.interval, "above")
        said.append(f"{percent_text(size, signed=False)} {side} {gain.reference_in_words}")
    sentence = f"τ = {tau_text(summary.best_tau)} gives test perplexity {perplexity}{': ' if said else ''}"
    lines = [f"**{sentence}{', '.join(said)}.**"]
    if analysis.gains:
        lines.append("Brackets hold 95% paired-bootstrap intervals.")
    for gain in analysis.gains:
        sure = "excludes 0" if gain.interval.excludes_zero else "includes 0: these documents do not tell the two apart"
        lines.append(f"The interval against {gain.reference_in_words} {sure}.")
    return " ".join(lines)


def place(summary: Summary) -> str:
    """Where the best tau lies among those fitted, and how it was chosen."""
    taus = [summary.settings[m].tau for m in summary.fits]
    chosen = "τ was chosen by perplexity on the validation documents; the test documents are only reported."
    if len(taus) == 1:
        return f"{chosen} It is the only value fitted."
    at = taus.index(summary.best_tau)
    if 0 < at < len(taus) - 1:
        neighbours = f"{tau_text(taus[at - 1])} and {tau_text(taus[at + 1])}"
        return f"{chosen} The best value is interior; its fitted neighbours are {neighbours}."
    meaning = {0.0: ": no sharing between tasks", math.inf: ": one model for all tasks"}.get(summary.best_tau, "")
    return f"{chosen} The best value is at an end of those fitted (τ = {tau_text(summary.best_tau)}{meaning})."


def lowest(summary: Summary, methods: list[Method]) -> list[str]:
    """The method that validation would choose, where several were compared."""
    ordered = sorted(methods, key=lambda method: summary.settings[method.setting].objective)
    return [f"Of all methods compared, {markdown_text(m.name)} is best on validation." for m in ordered[:1]]


def verdicts(analysis: Analysis) -> str:
    """For how many tasks the best tau pays; empty where there is nothing to compare with."""
    told = []
    for reference in dict.fromkeys(gain.reference for gain in analysis.task_gains):
        part = [gain for gain in analysis.task_gains if gain.reference == reference]
        told.append(f"Against {part[0].reference_in_words} {verdict_counts(part)}.")
    return (
        f"*Task by task.* {' '.join(told)} (Holm's correction, family-wise error {ALPHA:.0%}; Table 2.)" if told else ""
    )


def verdict_counts(gains: list[Gain]) -> str:
    """`5 of 12 tasks gain, 1 loses, and 6 show no evidence`."""
    gain, lose, unknown = (sum(g.verdict == said for g in gains) for said in (GAINS, LOSES, UNKNOWN))
    tasks = f"task{'s' if len(gains) > 1 else ''} {GAINS if gain == 1 else 'gain'}"
    return (
        f"{gain:,} of {len(gains):,} {tasks}, {lose:,} {LOSES if lose == 1 else 'lose'}, and {unknown:,} "
        f"{'shows' if unknown == 1 else 'show'} no evidence of either"
    )
