"""How much each task borrows: the pooling factor, from the held-out documents' nats under three fits.

A task's fit at 0 < tau < inf lies between its own fit (tau = 0, no pooling) and the shared one (tau = inf, complete
pooling). The pooling factor is the weight of the shared one in the mix of these two that comes nearest to it: 0, the
task is on its own; 1, it is as all. Near is by what the fits say of documents, not by the distance of adapters, which
directions without any effect on text dominate. `docs/method.md` has the reasons.

Two fits differ on a document by a part that varies with what the document says, which is linear in the difference of
the two adapters, and by one that is about the same for each token: how much better one of them fits. The second is
taken off, by the task's mean per token. The sum of products of two such differences over documents then estimates the
inner product of the adapters' differences in the metric of the Fisher information.

The factor of all tasks is one less the variance of the tasks' estimated deviations over the variance of the true ones
(Gelman & Pardoe 2006). Under the model, the mean product of the pooled and the unpooled deviation is the latter.

- A. Gelman, I. Pardoe (2006). Bayesian measures of explained variance and pooling in multilevel (hierarchical) models.
  Technometrics 48, 241-251.

D tasks, n documents of one task.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bora_sweep.config import PERPLEXITY
from bora_sweep.report.stats.interval import Interval, t_quantile
from bora_sweep.report.stats.summary import Summary

FEWEST_DOCUMENTS = 3
"""Held-out documents of a task, below which it has no factor: its mean and the factor itself take two."""
_ALIKE = 1e-20
"""Of the differences' mean square: below it all documents of a task differ alike, up to rounding."""


@dataclass(frozen=True)
class Pooling:
    """The pooling factor of a fit between the ends of tau."""

    settings: tuple[int, int, int]
    """The fits without, with partial and with complete pooling."""
    overall: Interval
    """Of all tasks; NaN where it is not known."""
    tasks: list[Interval]
    """Of each task, in the order of `Summary.tasks`; NaN for one with fewer than `FEWEST_DOCUMENTS`."""

    @property
    def partial(self) -> int:
        """The fit with partial pooling."""
        return self.settings[1]


def measure_pooling(summary: Summary, partial: int | None = None) -> Pooling | None:
    """The pooling factors of a fit, by perplexity; None without fits at tau = 0, at tau = inf and between.

    All documents of validation and test count: no adapter was fitted to them.

    Args:
        summary: Of a run.
        partial: One of `summary.between`; None: the best of them on validation.
    """
    no, complete = summary.independent, summary.shared
    partial = summary.best_between if partial is None else partial
    if no is None or partial is None or complete is None:
        return None
    scores = summary.scores[PERPLEXITY]
    splits = (scores.validation, scores.test)
    number_of = {task: d for d, task in enumerate(summary.tasks)}
    task_N = np.array([number_of[task] for split in splits for task in split.task_N], dtype=int)
    nats_N3 = np.concatenate([split.value_NM[:, [no, partial, complete]] for split in splits])
    tokens_N = np.concatenate([split.weight_N for split in splits])
    rows = [np.flatnonzero(task_N == d) for d in range(len(summary.tasks))]
    return Pooling((no, partial, complete), *pooling_factors(nats_N3, tokens_N, rows))


def pooling_factors(
    nats_N3: np.ndarray, tokens_N: np.ndarray, task_rows: Sequence[np.ndarray]
) -> tuple[Interval, list[Interval]]:
    """The pooling factor of all tasks, and of each, with 95% intervals over documents (delta method, Student's t).

    Args:
        nats_N3: Of each document without pooling, with partial and with complete pooling.
        tokens_N: Scored tokens of each document.
        task_rows: Rows of each task.
    """
    tasks, parts = [], []
    for rows in task_rows:
        moments = None if len(rows) < FEWEST_DOCUMENTS else _moments(nats_N3[rows], tokens_N[rows])
        tasks.append(_unknown() if moments is None else moments.factor())
        if moments is not None:
            parts.append(moments)
    return _overall(parts), tasks


@dataclass(frozen=True)
class _Moments:
    """Of a task's documents: how far each fit lies from complete pooling, what all tokens share taken off."""

    own_n: np.ndarray
    """The fit without pooling."""
    pooled_n: np.ndarray
    """The fit with partial pooling."""
    num_tokens: float

    @property
    def share(self) -> float:
        """How much of the unpooled deviation is left: one less the factor."""
        return float(self.own_n @ self.pooled_n / (self.own_n @ self.own_n))

    @property
    def correction(self) -> float:
        """Of a variance over the documents, of which the mean and the factor have taken two degrees of freedom."""
        return len(self.own_n) / (len(self.own_n) - 2)

    def factor(self) -> Interval:
        """Of this task."""
        influence_n = self.own_n * (self.pooled_n - self.share * self.own_n) / (self.own_n @ self.own_n)
        return _interval(1 - self.share, self.correction * float(influence_n @ influence_n), len(self.own_n) - 2)


def _moments(nats_n3: np.ndarray, tokens_n: np.ndarray) -> _Moments | None:
    """None where the documents do not tell no pooling from complete pooling."""
    root_n = np.sqrt(tokens_n)
    difference_n2 = (nats_n3[:, :2] - nats_n3[:, 2:]) / root_n[:, None]
    per_token_2 = root_n @ difference_n2 / tokens_n.sum()
    own_n, pooled_n = (difference_n2 - root_n[:, None] * per_token_2).T
    if not own_n @ own_n > _ALIKE * (nats_n3**2).sum():
        return None
    return _Moments(own_n, pooled_n, float(tokens_n.sum()))


def _overall(tasks: list[_Moments]) -> Interval:
    """One less the variance of estimated deviations over that of true ones, each task's per token."""
    estimated = sum(task.share**2 * float(task.own_n @ task.own_n) / task.num_tokens for task in tasks)
    true = sum(task.share * float(task.own_n @ task.own_n) / task.num_tokens for task in tasks)
    if not true > 0:
        return _unknown()
    ratio, variance, degrees = estimated / true, 0.0, 0
    for task in tasks:
        product_n, square_n = task.own_n * task.pooled_n, task.own_n**2
        influence_n = (2 * task.share - ratio) * product_n - task.share**2 * square_n
        influence_n = (influence_n - influence_n.mean()) / (task.num_tokens * true)
        variance += task.correction * float(influence_n @ influence_n)
        degrees += len(task.own_n) - 2
    return _interval(1 - ratio, variance, degrees)


def _interval(factor: float, variance: float, degrees: int) -> Interval:
    half_width = float(t_quantile(degrees)) * variance**0.5
    return Interval(factor, factor - half_width, factor + half_width)


def _unknown() -> Interval:
    return Interval(np.nan, np.nan, np.nan)
