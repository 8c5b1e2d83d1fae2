"""All that a report says of a run in numbers, reckoned once.

D tasks in the order of `Summary.tasks`, M settings in that of `Summary.settings`.
"""

from dataclasses import dataclass

import numpy as np

from bora_sweep.report.stats.bootstrap import Bootstrap, Contrast, Interval, paired_bootstrap, student, task_contrasts
from bora_sweep.report.stats.gains import Gain, overall_gains, task_gains, values_of
from bora_sweep.report.stats.smooth_curve import Curve
from bora_sweep.report.stats.summary import Summary
from bora_sweep.report.stats.tau_choice import Choice, choose_tau, curve_on_test
from bora_sweep.report.stats.trends import Trend, trend


@dataclass(frozen=True)
class Analysis:
    """Of the test documents, but for `choice`, which is of the validation documents."""

    summary: Summary
    bootstrap: Bootstrap
    """Of all tasks together: `perplexity(m)`, `relative_difference(m, reference)`."""
    gains: list[Gain]
    """Of the best fit over the ends, all tasks together."""
    task_gains: list[Gain]
    """The same for each task, with verdicts."""
    task_levels: Contrast
    """Nats per token of each task and setting, arrays DM: `perplexity(d, m)` is an `Interval`."""
    choice: Choice
    curve: Curve | None
    """Through the test scores between the ends."""
    trends: dict[str, Trend]
    """By name: `improvement_independent`, `improvement_shared`, `distance`, `perplexity`; those that there are."""

    def macro(self, m: int) -> Interval:
        """Mean of the tasks' test perplexities; each task's interval is of documents of its own, so variances add."""
        with np.errstate(over="ignore", invalid="ignore"):
            perplexity_D = np.exp(self.task_levels.nats_per_token[:, m])
            variance_D = (perplexity_D * self.task_levels.standard_error[:, m] / len(perplexity_D)) ** 2
            degrees = variance_D.sum() ** 2 / (variance_D**2 / self.task_levels.degrees[:, m]).sum()
        reach = float(student(degrees) * variance_D.sum() ** 0.5) if variance_D.any() else 0.0
        middle = float(perplexity_D.mean())
        return Interval(middle, middle - reach, middle + reach)

    @property
    def covers_seeds(self) -> bool:
        """Intervals of the test documents hold how fits vary over seeds too."""
        return self.bootstrap.seeds is not None

    def task_differences(self, setting: int, reference: int) -> Contrast:
        """Of any two settings for each task, arrays D: `relative(d)` is an `Interval`."""
        found = task_contrasts(self.summary.documents, [(setting, reference)])
        order_D = _order(self.summary)
        return Contrast(*(part[order_D, 0] for part in (found.nats_per_token, found.standard_error, found.degrees)))


def analyse(summary: Summary) -> Analysis:
    """All statistics of a report."""
    bootstrap = paired_bootstrap(summary.documents)
    found = task_contrasts(summary.documents, [(m, None) for m in range(len(summary.settings))])
    order_D, gains = _order(summary), task_gains(summary)
    return Analysis(
        summary=summary,
        bootstrap=bootstrap,
        gains=overall_gains(summary, bootstrap),
        task_gains=gains,
        task_levels=Contrast(*(part[order_D] for part in (found.nats_per_token, found.standard_error, found.degrees))),
        choice=choose_tau(summary),
        curve=curve_on_test(summary, bootstrap),
        trends=_trends(summary, gains),
    )


def _order(summary: Summary) -> np.ndarray:
    """Where each task of the summary stands among the documents' tasks."""
    place = {task: d for d, task in enumerate(summary.documents.tasks)}
    return np.array([place[task] for task in summary.tasks], dtype=int)


def _trends(summary: Summary, gains: list[Gain]) -> dict[str, Trend]:
    sizes_D, m = summary.train_documents_D, summary.best_between
    lines = [trend(f"improvement_{name}", *values_of(gains, name)) for name in ("independent", "shared")]
    if m is not None:
        lines.append(trend("distance", sizes_D, summary.distance_DM[:, m], is_log=True))
    lines.append(trend("perplexity", sizes_D, summary.perplexity_DM[:, summary.best], is_log=True))
    return {line.name: line for line in lines if line is not None}
