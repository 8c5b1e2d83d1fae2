"""The sections of `report.md` below its answer: each table with its explanation, and how everything was measured."""

import math

import pandas as pd

from bora_sweep.errors import plural
from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.bootstrap import REPLICATES
from bora_sweep.report.stats.significance import ALPHA
from bora_sweep.report.stats.summary import Summary
from bora_sweep.report.text import tables
from bora_sweep.report.text.formats import Table, markdown_table, shorten

MOST_ROWS = 41


def overall(analysis: Analysis) -> str:
    """Table 1."""
    return "\n\n".join(
        [
            "## Table 1. Perplexity for each τ",
            markdown_table(tables.overall_table(analysis)),
            "Bold: the lowest validation perplexity. *Epochs (best)*: epochs trained, and the one that validation "
            "chose. *Test* pools all tokens of all tasks; *macro* is the mean of the tasks' perplexities. *Test vs "
            "best*: how far the row's test perplexity is above (+) the best row's. Brackets hold 95% bootstrap "
            "intervals, paired for differences. [As numbers](tables/table_1.csv), [LaTeX](tables/table_1.tex).",
        ]
    )


def methods(summary: Summary, compared: pd.DataFrame) -> str:
    """The methods compared; empty where there are none.

    Args:
        summary: Of the run.
        compared: `method_frame`.
    """
    if compared.empty:
        return ""
    table = tables.method_table(summary, compared)
    return "\n\n".join(
        [
            "## Methods compared",
            markdown_table(table, limit=160),
            "Rows are in order of test perplexity, which chose nothing: each row is the method's fit with the lowest "
            "validation perplexity, and bold is the lowest of all. "
            f"*{table.columns[4]}*: how far the row's test perplexity is above (+) that of this fit. Brackets hold 95% "
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
    table = tables.verdict_table(analysis)
    more = f"The CSV has {_cut_tasks(table)} more. " if len(table.rows) > MOST_ROWS else ""
    return "\n\n".join(
        [
            "## Table 2. Which tasks gain: each task against either end of τ",
            markdown_table(shorten(table, MOST_ROWS)),
            f"{about_verdicts(analysis)} {more}[As numbers](tables/improvements.csv), [LaTeX](tables/table_2.tex).",
        ]
    )


def about_verdicts(analysis: Analysis) -> str:
    """What Table 2 shows, and how verdicts are made."""
    gains, num_tasks = analysis.task_gains, len(analysis.summary.tasks)
    never = len({gain.task for gain in gains if gain.smallest_p >= ALPHA})
    late = len({gain.task for gain in gains if gain.smallest_p * num_tasks >= ALPHA}) - never
    few = ""
    if never:
        few += (
            f" {never:,} of {plural(num_tasks, 'task')} {_have(never)} too few documents for any verdict (five or "
            "fewer)."
        )
    if late:
        few += (
            f" {late:,} of {plural(num_tasks, 'task')} {_have(late)} so few documents that Holm's correction "
            "leaves a verdict possible only after it has given other tasks theirs."
        )
    return (
        "Each task's test perplexity under the best fit, and how far it lies below (+) that at either end of τ. "
        "Brackets hold 95% intervals over the task's own documents. *p (Holm)*: the p-value of no difference, "
        f"corrected for the number of tasks, for each end separately. A verdict needs p below {ALPHA}. Each p-value is "
        "the larger of two: a test that flips the signs of the documents' differences, and the t test that belongs to "
        "the interval. No evidence is not evidence of no difference: with n test documents no p-value falls below "
        f"2<sup>1−n</sup> before the correction.{few}"
    )


def _have(number: int) -> str:
    return "has" if number == 1 else "have"


def _cut_tasks(table: Table) -> str:
    return plural(len(table.rows) - MOST_ROWS + 1, "task")


def by_task(analysis: Analysis) -> str:
    """Table A.1."""
    table, summary = tables.task_table(analysis), analysis.summary
    hidden = len(summary.fits) - len(tables.shown_fits(summary))
    cut = [f"{hidden} values of τ"] if hidden else []
    cut += [_cut_tasks(table)] if len(table.rows) > MOST_ROWS else []
    more = f"The CSV has {' and '.join(cut)} more. " if cut else ""
    return "\n\n".join(
        [
            "## Table A.1. Test perplexity of each task",
            markdown_table(shorten(table, MOST_ROWS)),
            "Bold: the lowest of the row's values of τ. It is by test perplexity, so it describes and does not select. "
            f"{more}Brackets hold 95% intervals of each perplexity alone; two are compared by their paired difference "
            "(Table 2). [As numbers](tables/table_a1.csv), [LaTeX, without intervals](tables/table_a1.tex).",
        ]
    )


def trials(summary: Summary) -> str:
    """Every trial."""
    table = shorten(tables.trial_table(summary), MOST_ROWS)
    return f"## Trials\n\n{markdown_table(table, limit=160)}\n\nEvery column: [trials.csv](tables/trials.csv)."


def measured(analysis: Analysis) -> str:
    """How perplexities are computed, and what the intervals cover."""
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
            "scored once, the end token included; padding never is. Validation chooses each epoch and τ.",
            markdown_table(tables.split_table(summary)),
            _about_intervals(summary),
            _about_seeds(analysis),
            floor,
        ]
    ).rstrip()


def _about_intervals(summary: Summary) -> str:
    single = int((summary.test_scores.counts_D == 1).sum())
    alone = (
        f" {plural(single, 'task')} {_have(single)} a single test document, and so no interval. In intervals over all "
        "tasks, such documents are resampled together, as if they were of one task."
        if single
        else ""
    )
    return (
        f"Intervals come from a paired bootstrap. Within each of {plural(len(summary.tasks), 'task')}, n − 1 of its n "
        f"documents are drawn with replacement, {REPLICATES:,} times from a fixed seed, the same draw for every τ. "
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
    return (
        f"{plural(noise.num_settings, 'setting')} {'was' if noise.num_settings == 1 else 'were'} fitted with several "
        "seeds, whose nats are pooled first. The intervals cover other documents of these same tasks, and other seeds: "
        "the variance over seeds is added to that over documents. It is one variance for all settings "
        f"({noise.degrees} degrees of freedom). {paired} The intervals do not cover another split or other tasks."
    )
