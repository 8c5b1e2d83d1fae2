"""The parts of `report.md` below its answer: tables with what to know of them, and how all was measured."""

import math

import pandas as pd

from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.bootstrap import REPLICATES
from bora_sweep.report.stats.significance import ALPHA
from bora_sweep.report.stats.summary import Summary
from bora_sweep.report.text import tables
from bora_sweep.report.text.formats import markdown_table, shorten
from bora_sweep.report.text.methods import method_table

MOST_ROWS = 41


def overall(analysis: Analysis) -> str:
    """Table 1."""
    return "\n\n".join(
        [
            "## Table 1. Perplexity for each τ",
            markdown_table(tables.overall_table(analysis)),
            "Bold: lowest validation perplexity. *Test* pools all tokens of all tasks; *macro* is the mean of the "
            "tasks' perplexities. *Test vs best*: how far the row's test perplexity is above (+) the best row's. "
            "Brackets hold 95% bootstrap intervals, those of differences paired. "
            "[As numbers](tables/table_1.csv), [LaTeX](tables/table_1.tex).",
        ]
    )


def methods(summary: Summary, compared: pd.DataFrame) -> str:
    """Methods side by side; empty where there are none."""
    if compared.empty:
        return ""
    table = method_table(summary, compared)
    return "\n\n".join(
        [
            "## Methods compared",
            markdown_table(table, limit=160),
            "In order of test perplexity, which chose nothing: of each method, the fit with the lowest validation "
            f"perplexity is shown, and bold is the lowest of all. *{table.columns[4]}*: how far the row's test "
            "perplexity is above (+) that of this fit. Brackets hold 95% bootstrap intervals, those of "
            "differences paired. *Tokens* and *seconds* are those of training: of the fit, all its seeds, and every "
            "fit that it started from or was made of, each counted once; *of the search*, of all finished fits that "
            "validation chose the row from. Seconds depend on the machine and on what else it did. "
            "[As numbers](tables/methods.csv), [LaTeX](tables/methods.tex).",
        ]
    )


def by_verdict(analysis: Analysis) -> str:
    """Table 2: the tasks with their verdicts; empty where there is nothing to compare with."""
    gains = analysis.task_gains
    if not gains:
        return ""
    table = tables.verdict_table(analysis)
    left = f"The CSV has {len(table.rows) - MOST_ROWS + 1:,} tasks more. " if len(table.rows) > MOST_ROWS else ""
    return "\n\n".join(
        [
            "## Table 2. Who gains: each task against either end",
            markdown_table(shorten(table, MOST_ROWS)),
            f"{on_verdicts(analysis)} {left}[As numbers](tables/improvements.csv), [LaTeX](tables/table_2.tex).",
        ]
    )


def on_verdicts(analysis: Analysis) -> str:
    """What to know of the verdicts."""
    gains, tasks = analysis.task_gains, len(analysis.summary.tasks)
    never = len({gain.task for gain in gains if gain.smallest_p >= ALPHA})
    late = len({gain.task for gain in gains if gain.smallest_p * tasks >= ALPHA}) - never
    few = f" {never:,} of {tasks:,} tasks have five or fewer, and so no verdict whatever they say." if never else ""
    few += f" {late:,} of {tasks:,} have so few that theirs depends on others' being given first." if late else ""
    return (
        "Test perplexity of the best fit, and how far it lies below (+) that of the end, with 95% intervals of the "
        "task's own documents. *p (Holm)*: of no difference, corrected for the number of tasks, for each end on "
        f"its own; a verdict is given below {ALPHA}. Each p-value is the larger of two: of a test that flips the "
        "signs of the documents' differences, and of the t test that belongs to the interval. No evidence is not "
        "evidence of no difference: with n test documents no p-value falls below 2<sup>1−n</sup> before the "
        f"correction.{few}"
    )


def by_task(analysis: Analysis) -> str:
    """Table A.1."""
    table, summary = tables.task_table(analysis), analysis.summary
    hidden = len(summary.fits) - len(tables.shown_fits(summary))
    cut = [f"{hidden} values of τ"] if hidden else []
    cut += [f"{len(table.rows) - MOST_ROWS + 1:,} tasks"] if len(table.rows) > MOST_ROWS else []
    left = f"The CSV has {' and '.join(cut)} more. " if cut else ""
    return "\n\n".join(
        [
            "## Table A.1. Test perplexity of each task",
            markdown_table(shorten(table, MOST_ROWS)),
            f"Bold: the row's lowest over the τ shown; found on test, it describes and does not select. {left}Brackets "
            "hold 95% intervals of each perplexity taken alone; two are compared by their paired difference (Table 2). "
            "[As numbers](tables/table_a1.csv), [LaTeX, without intervals](tables/table_a1.tex).",
        ]
    )


def trials(summary: Summary) -> str:
    """Every trial."""
    table = shorten(tables.trial_table(summary), MOST_ROWS)
    return f"## Trials\n\n{markdown_table(table, limit=160)}\n\nEvery column: [trials.csv](tables/trials.csv)."


def measured(analysis: Analysis) -> str:
    """What the numbers are, and what the intervals cover."""
    summary = analysis.summary
    single = int((summary.documents.counts_D == 1).sum())
    alone = (
        f" {single:,} task{'s have' if single > 1 else ' has'} a single test document, and so no interval of their "
        "own; for all tasks together such documents are resampled as if they were of one task."
        if single
        else ""
    )
    return "\n\n".join(
        [
            "## How it was measured",
            "Perplexity is exp(sum of nats / number of tokens): the negative log-likelihood of every scored token, "
            "summed over documents and seeds and divided once. Every token of a document after its start symbol is "
            "scored once, its end token included; padding never is. Each epoch and τ is chosen on validation.",
            markdown_table(tables.split_table(summary)),
            f"Intervals come from a paired bootstrap: within each of {len(summary.tasks):,} tasks its n documents are "
            f"drawn n − 1 times with replacement, the same draw for every τ, {REPLICATES:,} times from a fixed seed, "
            "and weigh n/(n − 1), so that few documents do not vary too little. An interval is the logarithm of the "
            "perplexity, or of a ratio of two, plus or minus its standard error by Student's t, whose degrees of "
            "freedom count the documents by their tokens: the fewer there are, the wider it is. On drawn documents, "
            "whose truth is known, such intervals held it in 93 to 97 of 100 draws (benchmarks/coverage.py)."
            f"{alone}",
            _seeds(analysis),
            "*Floor* is the perplexity of the source that wrote the text, known for the embedded corpus alone: no "
            "model is expected to do better."
            if not math.isnan(summary.floor)
            else "",
        ]
    ).rstrip()


def _seeds(analysis: Analysis) -> str:
    seeds = analysis.bootstrap.seeds
    other = "other documents of these same tasks"
    if seeds is None:
        return (
            f"Each τ was fitted with one seed: the intervals say how sure the result is for {other}, given these fits. "
            "They do not cover another training run (search.seeds=3 would), another split or other tasks."
        )
    paired = (
        f"what fits of one seed share cancels in differences ({seeds.paired_degrees} degrees of freedom)"
        if seeds.same_seeds
        else "the seeds are not the same for all, so nothing cancels in differences"
    )
    return (
        f"{seeds.settings} settings were fitted with several seeds, whose nats are pooled first. The intervals of "
        f"perplexities and differences cover {other} and other seeds: to the variance over documents is added that "
        f"over seeds, one for all settings ({seeds.degrees} degrees of freedom); {paired}. They do not cover another "
        "split or other tasks."
    )
