"""The sections of `report.md` below its answer: each table with its explanation, and how everything was measured."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from bora_sweep.errors import plural
from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.bootstrap import REPLICATES
from bora_sweep.report.stats.many_tasks import MANY_TASKS, extreme_gains, extreme_levels
from bora_sweep.report.stats.significance import ALPHA, can_have_verdict, documents_for_verdict
from bora_sweep.report.stats.summary import Summary
from bora_sweep.report.text import tables
from bora_sweep.report.text.answer import answer, tasks_that_gain
from bora_sweep.report.text.formats import Table, markdown_table, shorten
from bora_sweep.report.text.group_level import whether_groups_help
from bora_sweep.report.text.measured import better, chosen_by, coverage, label, suffix, title

MOST_ROWS = 41


def overall(analysis: Analysis) -> str:
    """Table 1, of the measure that chose tau."""
    measure, name = analysis.measure, label(analysis.measure)
    return "\n\n".join(
        [
            f"## Table 1. {title(measure)} for each τ",
            markdown_table(tables.overall_table(analysis)),
            f"Bold: the {measure.best_word} validation {name}. *Epochs (best)*: epochs trained, and the one that "
            f"validation chose. {_about_overall(analysis)}",
        ]
    )


def _about_overall(analysis: Analysis) -> str:
    """What the columns of a table over tau are, and where its numbers are."""
    name, end = label(analysis.measure), suffix(analysis)
    pooled = (
        f"*Test* is the mean over all documents of all tasks{better(analysis)}; *macro* is that of the tasks' means. "
        if analysis.measure.is_metric
        else f"*Test* pools all tokens of all tasks{better(analysis)}; *macro* is the mean of the tasks' perplexities. "
    )
    return (
        f"{pooled}*Test vs best*: how far the row's test {name} is above (+) the best row's. Brackets hold 95% "
        "bootstrap intervals, paired for differences. "
        f"[As numbers](tables/table_1{end}.csv), [LaTeX](tables/table_1{end}.tex)."
    )


def by_other_measure(analysis: Analysis, figures: list[str]) -> str:
    """The section on a measure that did not choose tau.

    Args:
        analysis: By this measure.
        figures: Its figures as Markdown, with their captions.
    """
    return "\n\n".join(
        filter(
            None,
            [
                f"## {title(analysis.measure)}",
                about_other_measure(analysis),
                tasks_that_gain(analysis),
                markdown_table(tables.overall_table(analysis)),
                about_other_table(analysis),
                *figures,
            ],
        )
    )


def about_other_measure(analysis: Analysis) -> str:
    """The answer by a measure that did not choose tau."""
    return f"{answer(analysis)} Validation chose τ{chosen_by(analysis.summary)}, not by {label(analysis.measure)}."


def about_other_table(analysis: Analysis) -> str:
    """What its table shows."""
    end = suffix(analysis)
    return (
        f"Bold: the τ that validation chose{chosen_by(analysis.summary)}. {_about_overall(analysis)} Of each task: "
        f"[test {label(analysis.measure)}](tables/table_a1{end}.csv), [gains](tables/improvements{end}.csv)."
    )


def methods(analysis: Analysis, compared: pd.DataFrame) -> str:
    """The methods compared; empty where there are none.

    Args:
        analysis: Of the run.
        compared: `method_frame`.
    """
    if compared.empty:
        return ""
    table = tables.method_table(analysis, compared)
    help_of_groups = whether_groups_help(analysis)
    name, best = label(analysis.measure), analysis.measure.best_word
    return "\n\n".join(
        [
            "## Methods compared",
            markdown_table(table, limit=160),
            *([help_of_groups] if help_of_groups else []),
            f"Rows are in order of test {name}, which chose nothing: each row is the method's fit with the {best} "
            f"validation {name}, and bold is the {best} of all. "
            f"*{table.columns[4]}*: how far the row's test {name} is above (+) that of this fit. Brackets hold 95% "
            "bootstrap intervals, paired for differences. *Tokens* and *seconds* are of training: of the fit, all its "
            "seeds, and every fit that it started from or was made of, each counted once. *Of the search*: the same "
            "for all finished fits among which validation chose the row. Seconds depend on the machine and its load. "
            "[As numbers](tables/methods.csv), [LaTeX](tables/methods.tex).",
        ]
    )


def by_verdict(analysis: Analysis) -> str:
    """Table 2: the tasks with their verdicts; empty where there is no end to compare with."""
    if not analysis.task_gains:
        return ""
    if len(analysis.summary.tasks) > MANY_TASKS:
        shown = _extremes(lambda tasks: tables.verdict_table(analysis, tasks), extreme_gains(analysis))
        more = (
            "The largest of many gains and losses overstate: the documents that pick them also measure them. "
            f"{_everywhere(len(analysis.tested))} "
        )
    else:
        table = tables.verdict_table(analysis, analysis.tested)
        shown = [markdown_table(shorten(table, MOST_ROWS))]
        more = f"The CSV has {_cut_tasks(table)} more. " if len(table.rows) > MOST_ROWS else ""
    return "\n\n".join(
        [
            "## Table 2. Which tasks gain: each task against either end of τ",
            *shown,
            f"{about_verdicts(analysis)} {more}[As numbers](tables/improvements.csv), [LaTeX](tables/table_2.tex).",
        ]
    )


def about_verdicts(analysis: Analysis) -> str:
    """What Table 2 shows, and how verdicts are made."""
    measure = analysis.measure
    return (
        f"Each task's test {label(measure)} under the best fit, and how far it lies {measure.better_side} (+) that at "
        "either end of τ. "
        "Brackets hold 95% intervals over the task's own documents. *p (Holm)*: the p-value of no difference, "
        f"corrected for the number of tasks, for each end separately. A verdict needs p below {ALPHA}. Each p-value is "
        "the larger of two: a test that flips the signs of the documents' differences, and the t test that belongs to "
        "the interval. No evidence is not evidence of no difference: with n test documents no p-value falls below "
        f"2<sup>1−n</sup> before the correction.{_too_few(analysis)}"
    )


def _too_few(analysis: Analysis) -> str:
    """Which tasks have too few documents for a verdict, by themselves or among so many tasks."""
    smallest_of = {gain.task: gain.smallest_p for gain in analysis.task_gains}
    smallest_D = np.array(list(smallest_of.values()))
    num_tasks, can_D = len(smallest_D), can_have_verdict(smallest_D)
    if not can_D.any():
        most = max(gain.test_documents for gain in analysis.task_gains)
        return (
            f" No task can have a verdict: among {plural(num_tasks, 'task')}, the first needs "
            f"{documents_for_verdict(num_tasks):,} test documents of its own, and no task has more than {most:,.0f}."
        )
    alone_D, late_D = smallest_D >= ALPHA, can_D & (smallest_D * num_tasks >= ALPHA)
    told = {
        "too few documents for any verdict (five or fewer).": alone_D,
        "so few documents that Holm's correction leaves no verdict possible.": ~can_D & ~alone_D,
        "so few documents that Holm's correction leaves a verdict possible only after it has given other tasks "
        "theirs.": late_D,
    }
    return "".join(
        f" {number:,} of {plural(num_tasks, 'task')} {_have(number)} {what}"
        for what, which_D in told.items()
        if (number := int(which_D.sum()))
    )


def _have(number: int) -> str:
    return "has" if number == 1 else "have"


def _cut_tasks(table: Table) -> str:
    return plural(len(table.rows) - MOST_ROWS + 1, "task")


def _extremes(table_of: Callable[[list[int]], Table], groups: dict[str, list[int]]) -> list[str]:
    """A table for each group of tasks, under its name."""
    return [part for name, tasks in groups.items() for part in (f"**{name}**", markdown_table(table_of(tasks)))]


def _everywhere(num_tasks: int) -> str:
    """Where all tasks are that the tables of extremes leave out."""
    return (
        f"All {plural(num_tasks, 'task')} are in the CSV, in the table of `index.html`, which has a search, and in "
        "`results/task_scores`; the LaTeX has the tasks that are shown here."
    )


def by_task(analysis: Analysis) -> str:
    """Table A.1."""
    summary, tasks = analysis.summary, list(range(len(analysis.summary.tasks)))
    hidden = len(summary.fits) - len(tables.shown_fits(summary))
    cut, more = [f"{hidden} values of τ"] if hidden else [], ""
    if len(tasks) > MANY_TASKS:
        shown = _extremes(lambda some: tables.task_table(analysis, some), extreme_levels(analysis))
        more = f"{_everywhere(len(tasks))} "
    else:
        table = tables.task_table(analysis, tasks)
        shown = [markdown_table(shorten(table, MOST_ROWS))]
        cut += [_cut_tasks(table)] if len(table.rows) > MOST_ROWS else []
    more += f"The CSV has {' and '.join(cut)} more. " if cut else ""
    name, level = label(analysis.measure), "mean" if analysis.measure.is_metric else "perplexity"
    first = ", the first of several alike" if analysis.measure.is_metric else ""
    return "\n\n".join(
        [
            f"## Table A.1. Test {name} of each task",
            *shown,
            f"Bold: the {analysis.measure.best_word} of the row's values of τ{first}. It is by test {name}, so it "
            f"describes and does not select. {more}Brackets hold 95% intervals of each {level} alone; two are compared "
            "by their paired difference (Table 2). [As numbers](tables/table_a1.csv), [LaTeX, without "
            "intervals](tables/table_a1.tex).",
        ]
    )


def trials(summary: Summary) -> str:
    """Every trial."""
    table = shorten(tables.trial_table(summary), MOST_ROWS)
    return f"## Trials\n\n{markdown_table(table, limit=160)}\n\nEvery column: [trials.csv](tables/trials.csv)."


def measured(analysis: Analysis) -> str:
    """How everything is computed, and what the intervals cover."""
    summary = analysis.summary
    floor = (
        ""
        if math.isnan(summary.floor)
        else "*Floor* is the perplexity of the source that wrote the text. It is known for the embedded corpus alone; "
        "no model is expected to be better."
    )
    return "\n\n".join(
        [
            "## How it was measured",
            "Perplexity is exp(sum of nats / number of tokens): the negative log-likelihood of every scored token, "
            "summed over documents and seeds and divided once. Every token of a document after its start symbol is "
            "scored once, the end token included; padding never is. Validation chooses each epoch"
            f"{f', and τ{chosen_by(summary)}' if summary.has_metrics else ' and τ'}.",
            *([_about_metrics(summary)] if summary.has_metrics else []),
            markdown_table(tables.split_table(summary)),
            *([coverage(analysis)] if coverage(analysis) else []),
            _about_intervals(analysis),
            _about_seeds(analysis),
            floor,
        ]
    ).rstrip()


def _about_metrics(summary: Summary) -> str:
    """What metrics are, and how their intervals differ from those of perplexity."""
    names = [label(scores.measure) for scores in summary.scores.values() if scores.measure.is_metric]
    return (
        f"Of a metric ({', '.join(names)}) higher is better. It is the mean of the documents' scores, over "
        "documents and seeds, at each trial's best epoch; every document counts once, whatever its length. Differences "
        "of a share are in percentage points. The intervals are those of a mean, or of a difference of two means: it "
        "plus or minus standard errors by Student's t, cut where no mean can lie. Where all documents of a task score "
        "alike (all right, say), nothing is known of how the next would differ: the task has no interval, not one of "
        "width 0. Of simulated answers, 94 to 100 of 100 intervals contained the truth (benchmarks/coverage.py)."
    )


def _about_intervals(analysis: Analysis) -> str:
    single = int((analysis.scores.test.counts_D == 1).sum())
    alone = (
        f" {plural(single, 'task')} {_have(single)} a single test document, and so no interval. In intervals over all "
        "tasks, such documents are resampled together, as if they were of one task."
        if single
        else ""
    )
    return (
        f"Intervals come from a paired bootstrap. Within each of {plural(len(analysis.tested), 'task')}, n − 1 of its "
        f"n documents are drawn with replacement, {REPLICATES:,} times from a fixed seed, the same draw for every τ. "
        "Each has weight n/(n − 1), so that the variance is right for few documents. An interval is the logarithm of "
        "the perplexity, or of a ratio of two, plus or minus its standard error times a quantile of Student's t. The "
        "degrees of freedom count documents by their tokens, so fewer documents give wider intervals. On simulated "
        "documents, where the truth is known, 93 to 97 of 100 such intervals contained it "
        f"(benchmarks/coverage.py).{alone}"
    )


def _about_seeds(analysis: Analysis) -> str:
    noise = analysis.bootstrap.seed_noise
    if noise is None:
        return (
            "Each τ was fitted with one seed. The intervals cover other documents of these same tasks, given these "
            "fits. They do not cover another training run (search.seeds=3 would), another split or other tasks."
        )
    paired = (
        f"In differences, the effect that fits of one seed share cancels ({noise.paired_degrees} degrees of freedom)."
        if noise.same_seeds
        else "Settings have different seeds, so nothing cancels in differences."
    )
    pooled = "scores" if analysis.measure.is_metric else "nats"
    return (
        f"{plural(noise.num_settings, 'setting')} {'was' if noise.num_settings == 1 else 'were'} fitted with several "
        f"seeds, whose {pooled} are pooled first. The intervals cover other documents of these same tasks, and other "
        "seeds: the variance over seeds is added to that over documents. It is one variance for all settings "
        f"({noise.degrees} degrees of freedom). {paired} The intervals do not cover another split or other tasks."
    )
