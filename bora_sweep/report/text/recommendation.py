"""The first paragraph of a report: what to serve, for a reader who knows neither tau nor the paper."""

import math

import numpy as np

from bora_sweep.errors import plural
from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.gains import Gain
from bora_sweep.report.stats.method_comparison import Method, kind_of
from bora_sweep.report.stats.recommendation import Alternative, Option, Recommendation
from bora_sweep.report.stats.significance import GAINS, LOSES, can_have_verdict
from bora_sweep.report.stats.summary import Summary
from bora_sweep.report.text.formats import amount_text, difference_text, markdown_text, perplexity_text, tau_text
from bora_sweep.report.text.measured import label
from bora_sweep.report.text.setting_names import method_name

MOST_NAMES = 3
"""Tasks that are named where one adapter for all is recommended and some tasks gain by their own."""


def recommendation(analysis: Analysis, made: Recommendation) -> str:
    """The recommendation in bold, then what it rests on and the command that writes the adapters.

    Args:
        analysis: By the measure that chose tau.
        made: `recommend(analysis)`.
    """
    summary = analysis.summary
    if made.only_base:
        sentences = [_nothing_on_validation(summary, made)]
    elif made.undecided is not None:
        sentences = _more_data(analysis, made, made.undecided)
    else:
        sentences = [f"**{_so_far(summary, _headline(analysis, made))}.**", _nearly_as_good(summary, made)]
    if not made.only_base:
        sentences += [_about_tasks(made), _missing(summary), _about_base(summary, made), _key(analysis, made)]
        sentences.append(_command(summary, made.served))
    return " ".join(filter(None, sentences))


def option_name(summary: Summary, option: Option) -> str:
    """An option within a sentence; plain text."""
    setting = summary.settings[option.setting]
    names = {
        "base": "the base model alone",
        "shared": "one adapter for all tasks",
        "bora": f"one per task (τ = {tau_text(setting.tau)})",
        "independent": "one per task fitted alone (τ = 0)",
    }
    if option.kind in names:
        return names[option.kind]
    return f"{'one per task' if option.is_own else 'one adapter for all tasks'} ({_method(summary, option)})"


def served_name(summary: Summary, option: Option) -> str:
    """What is served, after the word serve, as Markdown."""
    setting = summary.settings[option.setting]
    names = {
        "base": "the base model as it is",
        "shared": "ONE adapter for all tasks",
        "bora": f"each task's own adapter (τ = {tau_text(setting.tau)})",
        "independent": "one model per task, each fitted alone (τ = 0)",
    }
    if option.kind in names:
        return names[option.kind]
    what = "each task's own adapter" if option.is_own else "ONE adapter for all tasks"
    return f"{what} ({markdown_text(_method(summary, option))})"


def _in_sentence(summary: Summary, option: Option) -> str:
    return markdown_text(option_name(summary, option), 160)


def _method(summary: Summary, option: Option) -> str:
    kind = kind_of(summary.settings[option.setting])
    return method_name(summary, Method(kind, option.setting, [option.setting]))


def _headline(analysis: Analysis, made: Recommendation) -> str:
    summary, served = analysis.summary, made.served
    alone = "" if _is_compared(made) else ", the only kind that was fitted"
    clauses = _clauses(analysis, made)
    if served.kind == "base":
        return f"Serve {served_name(summary, served)}: no adapter is better ({clauses})"
    return f"Serve {served_name(summary, served)}{alone}{': ' if clauses else ''}{clauses}"


def _is_compared(made: Recommendation) -> bool:
    """More than one way to serve adapters was fitted."""
    return sum(option.kind != "base" for option in (made.served, *(a.option for a in made.alternatives))) > 1


def _clauses(analysis: Analysis, made: Recommendation, but: Alternative | None = None) -> str:
    """How each alternative compares, the one of most adapters first; of own adapters as what they are better than."""
    shown = [alternative for alternative in reversed(made.alternatives) if alternative is not but]
    if made.served.is_own:  # first what a reader would do instead: one for all
        shown = sorted(shown, key=lambda a: (a.option.num_adapters != 1, -a.option.num_adapters))
    return "; ".join(_clause(analysis, made.served, alternative) for alternative in shown)


def _clause(analysis: Analysis, served: Option, alternative: Alternative) -> str:
    measure, name = analysis.measure, _in_sentence(analysis.summary, alternative.option)
    relation = alternative.relation
    if served.kind == "base" and not any(analysis.summary.settings[alternative.option.setting].best_epochs):
        return f"{name} learnt nothing, its best epoch is the one before training"
    if relation == "unknown":
        return f"how {name} compares is not known, the test documents are too few"
    if relation == "worse" and served.is_own:
        return f"{difference_text(alternative.gain, measure, signed=False)} better than {name}"
    is_worse = alternative.worse.estimate >= 0
    size = alternative.worse if is_worse else -alternative.worse
    amount = f"{difference_text(size, measure, signed=False)} {'worse' if is_worse else 'better'}"
    if relation == "worse":
        return f"{name} is {amount}"
    beaten = alternative.beaten_by
    but = f", but {_in_sentence(analysis.summary, beaten)} is certainly better than that" if beaten is not None else ""
    return f"{name} ties with it ({amount}){but}"


def _more_data(analysis: Analysis, made: Recommendation, open_one: Alternative) -> list[str]:
    summary, measure = analysis.summary, analysis.measure
    one, other = _in_sentence(summary, open_one.option), _in_sentence(summary, made.served)
    documents = plural(len(analysis.scores.test.task_N), "test document")
    if open_one.relation == "unknown":
        first = f"More data would tell: {documents} cannot compare {one} with {other}"
    else:
        first = (
            f"More data would tell: {one} may be anything from {amount_text(open_one.possible_gain, measure)} better "
            f"to {amount_text(open_one.worse.high, measure)} worse than {other}, and {documents} do not decide"
        )
    clauses = _clauses(analysis, made, but=open_one)
    then = f"Until then serve {served_name(summary, made.served)}, the simplest that nothing is certainly better than"
    halve = " About four times as many test documents would halve that range." if open_one.relation == "ties" else ""
    return [f"**{_so_far(summary, first)}.**", f"{then}{': ' if clauses else ''}{clauses}.{halve}"]


def _nothing_on_validation(summary: Summary, made: Recommendation) -> str:
    first = _so_far(summary, "Serve the base model as it is: no adapter is better")
    return (
        f"**{first}.** Training did not lower the perplexity of the validation documents in any fit: "
        f"{perplexity_text(made.before)} before, {perplexity_text(made.after)} at the lowest after it. This rests on "
        "validation alone; a sweep with the baseline zero\\_shot also scores the base on test."
    )


def _nearly_as_good(summary: Summary, made: Recommendation) -> str:
    if made.nearly_as_good is None:
        return ""
    option = made.nearly_as_good.option
    trial = summary.settings[option.setting].trials[0][1]
    return f"That is a small gain over {_in_sentence(summary, option)} (trial {trial}), which is simpler to serve."


def _so_far(summary: Summary, sentence: str) -> str:
    """With how many trials have finished, where others have not."""
    states = list(summary.trials["status"])
    finished = states.count("finished")
    if finished == len(states):
        return sentence
    return f"So far ({finished:,} of {len(states):,} trials finished): {sentence[0].lower()}{sentence[1:]}"


def _about_tasks(made: Recommendation) -> str:
    """How many tasks certainly gain by an adapter of their own; who, where one for all is served."""
    gains = [gain for gain in made.task_gains if gain.verdict == GAINS]
    loses = sum(gain.verdict == LOSES for gain in made.task_gains)
    if not made.task_gains or made.single is None:
        return ""
    over = "one for all" if made.single.num_adapters else "the base"
    certainly = f"{len(gains):,} of {plural(len(made.task_gains), 'task')} certainly {_verb(gains)}"
    lost = f", {loses:,} certainly {'loses' if loses == 1 else 'lose'}" if loses else ""
    if made.served.is_own:
        none = not can_have_verdict(np.array([gain.smallest_p for gain in made.task_gains])).any()
        return f"{certainly} over {over}{lost}{' (too few test documents for a verdict on any task)' if none else ''}."
    return f"By an adapter of its own {certainly} over {over}{_who(gains)}{lost}." if gains else ""


def _verb(gains: list[Gain]) -> str:
    return "gains" if len(gains) == 1 else "gain"


def _who(gains: list[Gain]) -> str:
    """The tasks that gain most."""
    most = sorted(gains, key=lambda gain: -gain.interval.estimate)[:MOST_NAMES]
    names = ", ".join(markdown_text(str(gain.task)) for gain in most)
    return f" ({names}{', …' if len(gains) > MOST_NAMES else ''})"


def _missing(summary: Summary) -> str:
    """What was not fitted, so that nothing is known of it."""
    ends = {"one adapter for all tasks": summary.shared, "one per task fitted alone": summary.independent}
    absent = [name for name, m in ends.items() if m is None]
    if not absent:
        return ""
    return f"Not known is how {' and '.join(absent)} would do: no such fit has finished; a sweep makes both."


def _about_base(summary: Summary, made: Recommendation) -> str:
    """What is known of the base, where no trial scored it on test."""
    if summary.zero_shot is not None:
        return ""
    if math.isnan(made.before):
        return "The base model alone was not scored; a sweep with the baseline zero\\_shot does."
    return (
        "The base model alone was not scored on test; on validation, training lowered perplexity from "
        f"{perplexity_text(made.before)} to {perplexity_text(made.after)}."
    )


def _key(analysis: Analysis, made: Recommendation) -> str:
    """How to read the numbers."""
    if not made.alternatives:
        return ""
    ties = "; what ties has 0 in its bracket" if any(a.relation == "ties" for a in made.alternatives) else ""
    return f"(Better and worse: by test {label(analysis.measure)}. Brackets: 95% intervals{ties}.)"


def _command(summary: Summary, served: Option) -> str:
    if served.kind == "base":
        return ""
    return f"`bora-sweep export RUN OUT --trial {summary.settings[served.setting].trials[0][1]}` writes it."
