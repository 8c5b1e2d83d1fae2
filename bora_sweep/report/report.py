"""A run's report in Python: the answer, the tables as DataFrames, the figures as matplotlib's."""

from functools import cached_property
from pathlib import Path

import pandas as pd

from bora_sweep.errors import require
from bora_sweep.report import frames
from bora_sweep.report.notebook import Figures, markdown_html
from bora_sweep.report.stats.analysis import Analysis, analyse
from bora_sweep.report.stats.method_comparison import compare_methods
from bora_sweep.report.stats.pool_trials import summarise
from bora_sweep.report.stats.recommendation import recommend
from bora_sweep.report.stats.summary import Summary
from bora_sweep.report.stats.tau_choice import TauChoice
from bora_sweep.report.text.answer import answer
from bora_sweep.report.text.captions import captioned_figures, figures_of_other_measure
from bora_sweep.report.text.formats import markdown_table
from bora_sweep.report.text.recommendation import recommendation
from bora_sweep.report.text.tables import overall_table
from bora_sweep.report.write import write_report
from bora_sweep.runs.results import Results, read_results
from bora_sweep.runs.results_text import summary_text
from bora_sweep.runs.storage import Folder


class MeasureReport:
    """A report by one measure: of `Report`, the one that chose tau; of `Report.of`, another.

    Each part is computed when it is first used. Differences and their intervals are as fractions: 0.05 is 5% of
    perplexity, or 5 points of a metric from 0 to 1. Intervals are 95%, by a bootstrap over documents that is paired
    between trials.

    Args:
        summary: Of the run.
        measure: A name in `summary.scores`; None: the measure that chose tau.
        choice: Of tau, if it is at hand.
    """

    def __init__(self, summary: Summary, measure: str | None = None, choice: TauChoice | None = None) -> None:
        self.summary = summary
        self._measure, self._choice = measure, choice

    @property
    def best_tau(self) -> float:
        """The tau that is best on validation: 0, `inf`, or between."""
        return self.summary.best_tau

    @cached_property
    def analysis(self) -> Analysis:
        """Every estimate with its interval, the choice of tau, each task's verdicts, trends."""
        return analyse(self.summary, self._measure, self._choice)

    @cached_property
    def answer(self) -> str:
        """The first sentence of the report, as Markdown."""
        return answer(self.analysis)

    @cached_property
    def overall(self) -> pd.DataFrame:
        """Table 1: a row for each tau; perplexities, and the difference of test perplexity to the best, a fraction.

        By a metric: mean scores, and the difference of two.
        """
        return frames.overall_frame(self.analysis)

    @cached_property
    def by_task(self) -> pd.DataFrame:
        """Table A.1: a row for each task, test perplexity or mean score at each tau; NaN without test documents."""
        return frames.task_frame(self.analysis)

    @cached_property
    def improvements(self) -> pd.DataFrame:
        """Figure 3: how far each task's test perplexity lies below a reference's, a fraction, with `low` and `high`.

        By a metric: how far the mean score lies above. Tasks without test documents are left out.
        """
        return frames.gain_frame(self.analysis.task_gains)

    @cached_property
    def pooling(self) -> pd.DataFrame:
        """Figure 6: how much all tasks and each task borrow (0: on its own; 1: as all), and their levels at three τ.

        Empty without finished fits at τ = 0, at τ = ∞ and between.
        """
        return frames.pooling_frame(self.analysis)

    @cached_property
    def figures(self) -> Figures:
        """The report's figures by the names of their files; those that the results do not hold are left out.

        A notebook shows them all, or one of them, with `report.figures["figure_4_distance"]`.

        Figures 1 to 6 by the measure that chose tau, 2 and 3 by another.
        """
        captioned = captioned_figures if self.analysis.chose_tau else figures_of_other_measure
        return Figures(captioned(self.analysis))

    def __repr__(self) -> str:
        name = self._measure or self.summary.chosen_by.measure.name
        return f"{type(self).__name__}({name}: best tau = {self.best_tau:g})"

    def _repr_markdown_(self) -> str:
        return self.answer

    def _repr_html_(self) -> str:
        """The answer, Table 1 and Figure 2."""
        table = markdown_table(overall_table(self.analysis))
        curve = next(name for name in self.figures if name.startswith("figure_2"))
        return markdown_html(f"{self.answer}\n\n{table}") + self.figures.html(curve)


class Report(MeasureReport):
    """The results of a run, or of several read as one; also of a run that is not finished.

    Each part is computed when it is first used, and is by the measure that chose tau; `of` has the others. Differences
    and their intervals are fractions: 0.05 is 5%, or 5 points of a metric from 0 to 1. Intervals are 95%, by a
    bootstrap over documents that is paired between trials. Validation chose tau; test is only reported.

    Args:
        run: A run's folder (also `s3://…`, `gs://…`), a list of them, or `Results`.

    Raises:
        InputError: Not a run's folder, no MAP fit has finished, or runs that did not score the same documents by the
            same metrics, or chose tau by different ones.
    """

    def __init__(self, run: str | Folder | list[str | Folder] | Results) -> None:
        self.results = run if isinstance(run, Results) else read_results(run)
        super().__init__(summarise(self.results))

    def __repr__(self) -> str:
        return f"Report({summary_text(self.results)}, best tau = {self.best_tau:g})"

    @cached_property
    def recommendation(self) -> str:
        """What to serve and how the other ways compare, as Markdown: the first paragraph of the report."""
        return recommendation(self.analysis, recommend(self.analysis))

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that were scored beside perplexity."""
        return [name for name, scores in self.summary.scores.items() if scores.measure.is_metric]

    def of(self, measure: str) -> MeasureReport:
        """The same by one measure: `perplexity`, or one of `metrics`.

        Raises:
            InputError: It was not scored.
        """
        names = list(self.summary.scores)
        require(measure in names, f"{measure}: not scored in this run, which has {', '.join(names)}")
        return self if measure == names[0] else MeasureReport(self.summary, measure, self.analysis.choice)

    @cached_property
    def methods(self) -> pd.DataFrame:
        """A row for each method; empty where only fits over tau were made."""
        return frames.method_frame(self.analysis, compare_methods(self.summary))

    @property
    def trials(self) -> pd.DataFrame:
        """Every trial, finished or not: the table `trials`."""
        return self.summary.trials

    def write(self) -> Path | Folder:
        """Write `report/` in the (first) run's folder; returns the path of `report.md`, as `bora-sweep report` does."""
        return write_report(list(self.results.trials["run"].unique()))
