"""All statistics of a report by one measure, computed once.

D tasks in the order of `Summary.tasks`, M settings in the order of `Summary.settings`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from bora_sweep.report.stats.bootstrap import Bootstrap, paired_bootstrap, task_contrasts
from bora_sweep.report.stats.gains import Gain, gains_against, overall_gains, task_gains
from bora_sweep.report.stats.interval import Contrast, Interval, t_quantile
from bora_sweep.report.stats.measure import Measure
from bora_sweep.report.stats.pooling import Pooling, measure_pooling
from bora_sweep.report.stats.smooth_curve import SmoothCurve
from bora_sweep.report.stats.summary import Scores, Summary
from bora_sweep.report.stats.tau_choice import TauChoice, choose_tau, smooth_test_curve
from bora_sweep.report.stats.trends import Trend, fit_trend


@dataclass(frozen=True)
class Analysis:
    """Statistics of the test documents by one measure; `validation` and `choice` are of the validation documents."""

    summary: Summary
    scores: Scores
    """By the measure."""
    bootstrap: Bootstrap
    """All tasks together: `level(m)`, `difference(m, reference)`."""
    validation: Bootstrap
    """The same on validation."""
    gains: list[Gain]
    """Of the best fit over the ends of tau, all tasks together."""
    task_gains: list[Gain]
    """The same for each task that has test documents, with verdicts."""
    task_levels: Contrast
    """Mean value of each task and setting, arrays DM: `level(d, m)` is an `Interval`; NaN without test documents."""
    choice: TauChoice
    """By the measure that chose tau, whatever measure this analysis is by."""
    curve: SmoothCurve | None
    """Through the test scores at 0 < tau < inf."""
    trends: dict[str, Trend]
    """`improvement_independent`, `improvement_shared`, `distance` and the measure's name, where they could be
    fitted."""

    @property
    def measure(self) -> Measure:
        """What this analysis is by."""
        return self.scores.measure

    @property
    def chose_tau(self) -> bool:
        """Tau was chosen by this measure."""
        return self.scores is self.summary.chosen_by

    @property
    def floor(self) -> float:
        """Test perplexity of the source that wrote the text; NaN where it is not known, and for a metric."""
        return math.nan if self.measure.is_metric else self.summary.floor

    @property
    def floor_D(self) -> np.ndarray:
        """The same of each task."""
        return np.full_like(self.summary.floor_D, np.nan) if self.measure.is_metric else self.summary.floor_D

    @cached_property
    def tested_D(self) -> np.ndarray:
        """Which tasks have test documents."""
        scored = set(self.scores.test.tasks)
        return np.array([task in scored for task in self.summary.tasks], dtype=bool)

    @cached_property
    def tested(self) -> list[int]:
        """Their indices."""
        return np.flatnonzero(self.tested_D).tolist()

    @cached_property
    def pooling(self) -> Pooling | None:
        """How much tasks borrow, by perplexity; None without fits at both ends and between."""
        return measure_pooling(self.summary)

    def macro(self, m: int, tasks: Sequence[int] | None = None) -> Interval:
        """Mean of the tasks' test levels, over the tasks with test documents.

        Tasks have different documents, so the variances of their levels add. Degrees of freedom are combined by
        Satterthwaite (1946).

        Args:
            m: The setting.
            tasks: Some of the tasks with test documents; None: all of them.
        """
        levels, at = self.task_levels, (self.tested if tasks is None else tasks, m)
        with np.errstate(over="ignore", invalid="ignore"):
            level_D = self.measure.level(levels.estimate[at])
            error_D = self.measure.level_error(levels.estimate[at], levels.standard_error[at])
            variance_D = (error_D / len(level_D)) ** 2
            degrees = variance_D.sum() ** 2 / (variance_D**2 / levels.degrees_of_freedom[at]).sum()
        half_width = float(t_quantile(degrees) * variance_D.sum() ** 0.5) if variance_D.any() else 0.0
        if np.asarray(levels.documents_agree)[at].all():
            half_width = np.nan
        mean = float(level_D.mean())
        low, high = np.clip([mean - half_width, mean + half_width], *self.measure.limits)
        return Interval(mean, float(low), float(high))

    def task_differences(self, setting: int, reference: int) -> Contrast:
        """Difference of two settings for each task, arrays D: `difference(d)` is an `Interval`."""
        differences = task_contrasts(self.scores.test, [(setting, reference)])
        return _of_all_tasks(differences, self.summary, self.scores, column=0)


def analyse(summary: Summary, measure: str | None = None, choice: TauChoice | None = None) -> Analysis:
    """All statistics of a report by one measure.

    Args:
        summary: Of a run.
        measure: A name in `summary.scores`; None: the measure that chose tau.
        choice: `choose_tau(summary)`, if it is at hand.
    """
    scores = summary.chosen_by if measure is None else summary.scores[measure]
    choice = choose_tau(summary) if choice is None else choice
    bootstrap = paired_bootstrap(scores.test)
    levels = task_contrasts(scores.test, [(m, None) for m in range(len(summary.settings))])
    gains = task_gains(summary, scores.test)
    return Analysis(
        summary=summary,
        scores=scores,
        bootstrap=bootstrap,
        validation=choice.bootstrap if scores is summary.chosen_by else paired_bootstrap(scores.validation),
        gains=overall_gains(summary, bootstrap),
        task_gains=gains,
        task_levels=_of_all_tasks(levels, summary, scores),
        choice=choice,
        curve=smooth_test_curve(summary, bootstrap),
        trends=_trends(summary, scores, gains),
    )


def analyse_others(analysis: Analysis) -> list[Analysis]:
    """The same run by every other measure."""
    others = (name for name in analysis.summary.scores if name != analysis.measure.name)
    return [analyse(analysis.summary, name, analysis.choice) for name in others]


def _of_all_tasks(contrast: Contrast, summary: Summary, scores: Scores, column: int | slice = slice(None)) -> Contrast:
    """A contrast of the tasks with test documents, for all tasks in the summary's order; NaN for the others."""
    number_of = {task: d for d, task in enumerate(scores.test.tasks)}
    at_D = [number_of.get(task, len(number_of)) for task in summary.tasks]

    def of_all(values: np.ndarray, missing: float | bool) -> np.ndarray:
        return np.concatenate([values, np.full_like(values[:1], missing)])[at_D, column]

    return replace(
        contrast,
        estimate=of_all(contrast.estimate, np.nan),
        standard_error=of_all(contrast.standard_error, np.nan),
        degrees_of_freedom=of_all(contrast.degrees_of_freedom, np.nan),
        documents_agree=of_all(np.asarray(contrast.documents_agree), False),
    )


def _trends(summary: Summary, scores: Scores, gains: list[Gain]) -> dict[str, Trend]:
    sizes_D, m, measure = summary.train_documents_D, summary.best_between, scores.measure
    trends = []
    for reference in ("independent", "shared"):
        tasks = gains_against(gains, reference)
        documents_D = np.array([gain.train_documents for gain in tasks])
        trends.append(
            fit_trend(f"improvement_{reference}", documents_D, np.array([gain.interval.estimate for gain in tasks]))
        )
    if m is not None:
        trends.append(fit_trend("distance", sizes_D, summary.distance_DM[:, m], is_log=True))
    level_D = scores.test_DM[:, summary.best]
    trends.append(fit_trend(measure.name, sizes_D, level_D, is_log=not measure.is_metric))
    return {trend.name: trend for trend in trends if trend is not None}
