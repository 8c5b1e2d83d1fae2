"""A run's report in Python: the answer, the tables as DataFrames, the figures as matplotlib's."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from bora_sweep.report.figures.draw import draw
from bora_sweep.report.stats.analysis import Analysis, analyse
from bora_sweep.report.stats.summary import Summary, summarise
from bora_sweep.report.text import tables
from bora_sweep.report.text.answer import answer
from bora_sweep.report.text.captions import illustrate
from bora_sweep.report.text.methods import compare_methods, method_numbers
from bora_sweep.report.write import write_report
from bora_sweep.runs.results import Results, read_results
from bora_sweep.runs.storage import Folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Report:
    """What a run, or several read as one, has found; also of a run that is not finished.

    Each part is computed when it is first asked for. Differences and intervals are fractions: 0.05 is 5%; intervals
    hold 95%, by a bootstrap over documents that is paired between trials. tau was chosen on validation, test is only
    reported.

    Args:
        run: A run's folder (also `s3://…`, `gs://…`), a list of them, or `Results`.

    Raises:
        InputError: Not a run's folder, no MAP fit has finished, or runs that did not score the same documents.
    """

    def __init__(self, run: str | Folder | list[str | Folder] | Results) -> None:
        self.results = run if isinstance(run, Results) else read_results(run)
        self.summary: Summary = summarise(self.results)

    @property
    def best_tau(self) -> float:
        """The tau of the lowest validation perplexity: 0, `inf`, or between."""
        return self.summary.best_tau

    @cached_property
    def analysis(self) -> Analysis:
        """Every estimate with its interval, the choice of tau, verdicts by task, trends."""
        return analyse(self.summary)

    @cached_property
    def answer(self) -> str:
        """The sentence that the report begins with, as Markdown."""
        return answer(self.analysis)

    @cached_property
    def overall(self) -> pd.DataFrame:
        """Table 1: a row for each tau; perplexities, and the difference of test perplexity to the best, a fraction."""
        return tables.overall_numbers(self.analysis)

    @cached_property
    def by_task(self) -> pd.DataFrame:
        """Table A.1: a row for each task, test perplexity at each tau."""
        return tables.task_numbers(self.analysis)

    @cached_property
    def improvements(self) -> pd.DataFrame:
        """Figure 3: how far each task's test perplexity lies below a reference's, a fraction, with `low` and `high`."""
        return tables.gain_numbers(self.analysis.task_gains)

    @cached_property
    def methods(self) -> pd.DataFrame:
        """A row for each method that was compared; empty where there is BoRA alone."""
        return method_numbers(self.summary, self.analysis.bootstrap, compare_methods(self.summary))

    @property
    def trials(self) -> pd.DataFrame:
        """Every trial, finished or not: the table `trials`."""
        return self.summary.trials

    @cached_property
    def figures(self) -> "dict[str, Figure]":
        """The report's figures by the names of their files; those that the results do not hold are left out."""
        shown = illustrate(self.analysis)
        return {one.name: draw(one.data) for one in shown if one.data is not None}

    def write(self) -> Path | Folder:
        """Write `report/` in the (first) run's folder; returns the page, as `bora-sweep report` does."""
        return write_report(list(self.results.trials["run"].unique()))

    def _repr_markdown_(self) -> str:
        return self.answer
