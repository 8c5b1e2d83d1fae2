"""All statistics of a report, computed once.

D tasks in the order of `Summary.tasks`, M settings in the order of `Summary.settings`.
"""

from dataclasses import dataclass

import numpy as np

from bora_sweep.report.stats.bootstrap import Bootstrap, paired_bootstrap, task_contrasts
from bora_sweep.report.stats.gains import Gain, gains_against, overall_gains, task_gains
from bora_sweep.report.stats.interval import Contrast, Interval, t_quantile
from bora_sweep.report.stats.smooth_curve import SmoothCurve
from bora_sweep.report.stats.summary import Summary
from bora_sweep.report.stats.tau_choice import TauChoice, choose_tau, smooth_test_curve
from bora_sweep.report.stats.trends import Trend, fit_trend


@dataclass(frozen=True)
class Analysis:
    """Statistics of the test documents; `choice` alone is of the validation documents."""

    summary: Summary
    bootstrap: Bootstrap
    """All tasks together: `perplexity(m)`, `relative_difference(m, reference)`."""
    gains: list[Gain]
    """Of the best fit over the ends of tau, all tasks together."""
    task_gains: list[Gain]
    """The same for each task, with verdicts."""
    task_levels: Contrast
    """Nats per token of each task and setting, arrays DM: `perplexity(d, m)` is an `Interval`."""
    choice: TauChoice
    curve: SmoothCurve | None
    """Through the test scores at 0 < tau < inf."""
    trends: dict[str, Trend]
    """`improvement_independent`, `improvement_shared`, `distance` and `perplexity`, where they could be fitted."""

    def macro_perplexity(self, m: int) -> Interval:
        """Mean of the tasks' test perplexities.

        Tasks have different documents, so the variances of their perplexities add. Degrees of freedom are combined by
        Satterthwaite (1946).
        """
        with np.errstate(over="ignore", invalid="ignore"):
            perplexity_D = np.exp(self.task_levels.nats_per_token[:, m])
            variance_D = (perplexity_D * self.task_levels.standard_error[:, m] / len(perplexity_D)) ** 2
            degrees_D = self.task_levels.degrees_of_freedom[:, m]
            degrees = variance_D.sum() ** 2 / (variance_D**2 / degrees_D).sum()
        half_width = float(t_quantile(degrees) * variance_D.sum() ** 0.5) if variance_D.any() else 0.0
        mean = float(perplexity_D.mean())
        return Interval(mean, mean - half_width, mean + half_width)

    def task_differences(self, setting: int, reference: int) -> Contrast:
        """Difference of two settings for each task, arrays D: `relative(d)` is an `Interval`."""
        differences = task_contrasts(self.summary.test_scores, [(setting, reference)])
        return _reordered(differences, (_task_order(self.summary), 0))


def analyse(summary: Summary) -> Analysis:
    """All statistics of a report."""
    bootstrap = paired_bootstrap(summary.test_scores)
    levels = task_contrasts(summary.test_scores, [(m, None) for m in range(len(summary.settings))])
    gains = task_gains(summary)
    return Analysis(
        summary=summary,
        bootstrap=bootstrap,
        gains=overall_gains(summary, bootstrap),
        task_gains=gains,
        task_levels=_reordered(levels, _task_order(summary)),
        choice=choose_tau(summary),
        curve=smooth_test_curve(summary, bootstrap),
        trends=_trends(summary, gains),
    )


def _reordered(contrast: Contrast, index: np.ndarray | tuple[np.ndarray, int]) -> Contrast:
    return Contrast(contrast.nats_per_token[index], contrast.standard_error[index], contrast.degrees_of_freedom[index])


def _task_order(summary: Summary) -> np.ndarray:
    """For each task of the summary, its index among the documents' tasks."""
    number_of = {task: d for d, task in enumerate(summary.test_scores.tasks)}
    return np.array([number_of[task] for task in summary.tasks], dtype=int)


def _trends(summary: Summary, gains: list[Gain]) -> dict[str, Trend]:
    sizes_D, m = summary.train_documents_D, summary.best_between
    trends = []
    for reference in ("independent", "shared"):
        tasks = gains_against(gains, reference)
        documents_D = np.array([gain.train_documents for gain in tasks])
        trends.append(
            fit_trend(f"improvement_{reference}", documents_D, np.array([gain.interval.estimate for gain in tasks]))
        )
    if m is not None:
        trends.append(fit_trend("distance", sizes_D, summary.distance_DM[:, m], is_log=True))
    trends.append(fit_trend("perplexity", sizes_D, summary.perplexity_DM[:, summary.best], is_log=True))
    return {trend.name: trend for trend in trends if trend is not None}
