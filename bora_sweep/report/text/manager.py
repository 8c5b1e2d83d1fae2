"""One page for the person who decides: what to serve, in everyday words.

Perplexity is told as what it is: exp of the mean nats per token is the number of equally likely next pieces of text
among which a choice would be as uncertain. A ratio of two perplexities is a ratio of two such numbers.
"""

import math

from bora_sweep.errors import percentage, plural
from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.gains import Gain
from bora_sweep.report.stats.interval import Interval
from bora_sweep.report.stats.method_comparison import Method
from bora_sweep.report.stats.recommendation import Alternative, Option, Recommendation
from bora_sweep.report.stats.significance import GAINS, LOSES
from bora_sweep.report.stats.summary import Summary
from bora_sweep.report.text import training_notes
from bora_sweep.report.text.formats import amount_text, level_text, markdown_text, megabytes_text
from bora_sweep.report.text.measured import label
from bora_sweep.report.text.notes import cut_share
from bora_sweep.report.text.provenance import model_name
from bora_sweep.report.text.serving_cost import adapter_bytes, config_of, trial_of

MOST_NAMES = 5
"""Tasks that are named, of those that gain and of those that lose."""


def manager_page(analysis: Analysis, made: Recommendation, methods: list[Method], run: str) -> str:
    """The page as Markdown, without the vocabulary of statistics and of training.

    Args:
        analysis: By the measure that chose what is served.
        made: `recommend(analysis)`.
        methods: `compare_methods`.
        run: The run's name.
    """
    summary = analysis.summary
    return "\n\n".join(
        filter(
            None,
            [
                f"# What to serve: {markdown_text(run)}",
                _advice(made),
                "## What it brings",
                _benefit(analysis, made),
                "## How sure this is",
                _certainty(analysis, made),
                "## What it costs to serve",
                _cost(summary, made),
                "## Which tasks gain most, and which lose",
                _tasks(analysis, made),
                "## What to do next",
                _next(summary, made, methods),
            ],
        )
    )


def _name(option: Option) -> str:
    if option.kind == "other":
        return f"{'an adapter for each task' if option.is_own else 'one adapter for all tasks'}, by another method"
    return {
        "base": "the base model without any adapter",
        "shared": "one adapter for all tasks",
        "bora": "an adapter for each task, all made together",
        "independent": "an adapter for each task, each made from its own texts alone",
    }[option.kind]


def _advice(made: Recommendation) -> str:
    about = "An adapter is a small add-on to the base model that fits it to a kind of text."
    if made.only_base:
        return f"**Serve the base model without any adapter: none was better in the training so far.** {about}"
    if made.undecided is not None:
        one = _name(made.undecided.option)
        return (
            f"**It is too early to decide: the texts that the ways were compared on are too few to say whether {one} "
            f"would be better. Until then, serve {_name(made.served)}.** {about}"
        )
    little = ""
    if made.nearly_as_good is not None:
        name = _name(made.nearly_as_good.option)
        little = f" The gain over {name} is small: take that if it is easier for you to run."
    return f"**Serve {_name(made.served)}.** {about}{little}"


def _benefit(analysis: Analysis, made: Recommendation) -> str:
    if made.only_base:
        return (
            "Training did not make the model better on texts that were kept back to watch it. It was not compared on "
            "further texts."
        )
    level = analysis.bootstrap.level(made.served.setting).estimate
    lines = [_about_level(analysis, level)]
    lines += [f"- {_compared(analysis, alternative)}" for alternative in reversed(made.alternatives)]
    return f"{lines[0]}\n\n" + "\n".join(lines[1:]) if made.alternatives else lines[0]


def _about_level(analysis: Analysis, level: float) -> str:
    measure = analysis.measure
    if not measure.is_metric:
        return (
            "On texts that it has never seen, the model is as unsure about the next piece of text (a word or a part of "
            f"one) as if it had to choose among {level_text(measure)(level)} that are equally likely. Fewer is better."
        )
    what = {
        "accuracy": "the share of answers that are right",
        "exact_match": "the share of answers that are exactly right",
        "rouge_l": "how much of the right answers the model's answers share",
    }.get(measure.name, f"the score {label(measure)}")
    return f"On texts that it has never seen, {what} is {level_text(measure)(level)} on average. Higher is better."


def _compared(analysis: Analysis, alternative: Alternative) -> str:
    """What another way reaches, and how the recommended one differs."""
    measure, name = analysis.measure, _name(alternative.option)
    name = name[0].upper() + name[1:]
    level = level_text(measure)(analysis.bootstrap.level(alternative.option.setting).estimate)
    reached = f"{name}: {level}" if measure.is_metric else f"{name}: as among {level}"
    match alternative.relation:
        case "unknown":
            return f"{reached}. Too few texts to compare."
        case "ties":
            return f"{reached}. No difference that could be told from chance."
    fewer, more = ("more", "fewer") if measure.is_metric else ("fewer", "more")
    if alternative.relation == "better":
        return f"{reached}, which is {amount_text(alternative.worse.estimate, measure)} {fewer} than the recommended."
    amount = amount_text(alternative.worse.estimate, measure)
    return f"{reached}, which is {amount} {more} than the recommended."


def _certainty(analysis: Analysis, made: Recommendation) -> str:
    documents = plural(len(analysis.scores.test.task_N), "text")
    if made.only_base:
        return "Not very: it rests on the texts that training itself was watched on."
    parts = [
        f"The ways were compared on {documents} of {plural(len(analysis.tested), 'task')} that no training has used.",
        *_ranges(analysis, made),
    ]
    if made.alternatives:
        parts.append("Ranges that are made like this hold the true value 19 times out of 20.")
    parts.append("All this is about new texts of these same tasks; it says nothing of other tasks.")
    if analysis.bootstrap.seed_noise is None:
        parts.append("Training was done once each; doing it again would change the numbers a little.")
    return " ".join(parts)


def _ranges(analysis: Analysis, made: Recommendation) -> list[str]:
    """A sentence on how the other ways compare, and one on those of which nothing is known."""
    shown = made.alternatives[::-1]
    known = [_range(analysis, alternative) for alternative in shown if alternative.relation != "unknown"]
    unknown = [_name(alternative.option) for alternative in shown if alternative.relation == "unknown"]
    return [
        *([f"Compared with the recommendation, {'; '.join(known)}."] if known else []),
        *(f"How {name} compares cannot be said." for name in unknown),
    ]


def _range(analysis: Analysis, alternative: Alternative) -> str:
    measure, name, worse = analysis.measure, _name(alternative.option), alternative.worse
    if alternative.relation == "ties":
        low, high = amount_text(worse.low, measure), amount_text(worse.high, measure)
        return f"{name} is somewhere from {low} better to {high} worse"
    side = "worse" if alternative.relation == "worse" else "better"
    low, high = sorted([abs(worse.low), abs(worse.high)])
    return f"{name} is {side} by {amount_text(low, measure)} to {amount_text(high, measure)}"


def _cost(summary: Summary, made: Recommendation) -> str:
    adapted = next((way for way in (made.served, made.own, made.single) if way and way.num_adapters), made.served)
    row = trial_of(summary, adapted)
    name = markdown_text(model_name(config_of(row)), 120)
    base_bytes = row["base_bytes"]
    size = "" if math.isnan(base_bytes) else f" ({megabytes_text(float(base_bytes))})"
    ways = sorted([made.served, *(other.option for other in made.alternatives)], key=lambda way: way.num_adapters)
    lines = [f"- {_cost_of(summary, way, way == made.served and not made.only_base)}" for way in ways]
    return f"Every way needs the base model{f', {name}' if name else ''}{size}, once. Added to it:\n\n" + "\n".join(
        lines
    )


def _cost_of(summary: Summary, way: Option, is_served: bool) -> str:
    name = _name(way)
    size = megabytes_text(way.num_adapters * adapter_bytes(summary, way))
    what = "nothing" if not way.num_adapters else plural(way.num_adapters, "adapter")
    text = f"{name[0].upper()}{name[1:]}: {what}{f', {size}' if way.num_adapters and size != '–' else ''}"
    return f"**{text}**" if is_served else text


def _tasks(analysis: Analysis, made: Recommendation) -> str:
    """Of own adapters over what is simpler."""
    if not made.task_gains or made.single is None:
        return "Not known: the ways that this would compare were not all tried."
    gains = sorted(made.task_gains, key=lambda gain: -gain.interval.estimate)
    gain, lose = ([one for one in gains if one.verdict == verdict] for verdict in (GAINS, LOSES))
    rest = len(gains) - len(gain) - len(lose)
    parts = [
        f"With an adapter of its own instead of {_name(made.single)}:",
        f"- {_list(analysis, gain, 'certainly better')}",
        f"- {_list(analysis, lose[::-1], 'certainly worse')}",
        *([f"- {plural(rest, 'task')} with too few texts, or too small a difference, to be sure"] if rest else []),
    ]
    return f"{parts[0]}\n\n" + "\n".join(parts[1:])


def _list(analysis: Analysis, gains: list[Gain], what: str) -> str:
    if not gains:
        return f"no task is {what}"
    names = ", ".join(f"{markdown_text(str(one.task))} ({_size(analysis, one.interval)})" for one in gains[:MOST_NAMES])
    more = f", and {len(gains) - MOST_NAMES:,} more" if len(gains) > MOST_NAMES else ""
    return f"{what}: {plural(len(gains), 'task')}, {names}{more}"


def _size(analysis: Analysis, gain: Interval) -> str:
    measure = analysis.measure
    if measure.is_metric:
        return f"{amount_text(gain.estimate, measure)} {'higher' if gain.estimate > 0 else 'lower'}"
    return f"{amount_text(gain.estimate, measure)} {'fewer' if gain.estimate > 0 else 'more'}"


def _next(summary: Summary, made: Recommendation, methods: list[Method]) -> str:
    """Steps, the first of them what to do now."""
    served = made.served.setting
    steps = []
    finished = list(summary.trials["status"]).count("finished")
    if finished < len(summary.trials):
        steps.append(
            f"Let the run finish: {finished:,} of {len(summary.trials):,} trainings are done, the advice may change."
        )
    if made.undecided is not None:
        steps.append("Collect more texts. About four times as many would halve the range above.")
    if summary.shared is None or summary.independent is None:
        steps.append("Run a full comparison (`bora-sweep sweep`): not all ways were tried.")
    if made.only_base or (made.served.kind == "base" and made.undecided is None):
        steps.append("Try more text, or another base model, before giving up on adapters.")
    if made.served.num_adapters and not made.only_base:
        command = f"bora-sweep export RUN OUT --trial {summary.settings[served].trials[0][1]}"
        steps.append(f"Write the adapters: `{command}`.")
    if training_notes.not_converged(summary, methods, served):
        steps.append("Train longer: some of the trainings were still getting better when they were ended.")
    if training_notes.stopped_by_user(summary, methods, served):
        steps.append("Make anew the trainings that somebody ended by hand: they might have become better.")
    for what in dict.fromkeys(_whose(summary, m, served) for m, _ in training_notes.edges(summary)):
        steps.append(f"Try settings beyond those tried: {what} was the last of its range.")
    if cut := cut_share(summary):
        steps.append(
            f"Look at the long texts: parts of them, {percentage(cut)} of all text, were cut off and not used. "
            f"{_kept(summary, made)}"
        )
    return "\n".join(f"{n}. {step}" for n, step in enumerate(steps, start=1)) or "1. Nothing: the run is complete."


def _whose(summary: Summary, setting: int | None, served: int) -> str:
    """A best setting, by what it is for where another one is recommended."""
    if setting is None or setting == served:
        return "the best one"
    way = {0.0: "an adapter of each task made alone", math.inf: "one adapter for all tasks"}
    return f"the best one for {way.get(summary.settings[setting].tau, 'an adapter of each task')}"


def _kept(summary: Summary, made: Recommendation) -> str:
    """Of which parts of long texts the numbers are."""
    is_end = config_of(trial_of(summary, made.served)).get("data", {}).get("truncate", "end") == "end"
    return f"The numbers on this page are of {'their beginnings' if is_end else 'what was kept of them'} alone."
