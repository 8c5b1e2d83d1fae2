"""How much each task borrows: the pooling factor, from the held-out documents' nats under three fits.

A task's fit at 0 < tau < inf lies between its own fit (tau = 0, no pooling) and the shared one (tau = inf, complete
pooling). The pooling factor is the weight of the shared one in the mix of these two that comes nearest to it: 0, the
task is on its own; 1, it is as all. Near is by what the fits say of documents, not by the distance of adapters, which
directions without any effect on text dominate. `docs/method.md` has the reasons.

Two fits differ on a document by a part that varies with what the document says, which is linear in the difference of
the two adapters, and by one that is about the same for each token: how much better one of them fits. The second is
taken off, by the task's mean per token. The sum of products of two such differences over documents then estimates the
inner product of the adapters' differences in the metric of the Fisher information.

The factor of all tasks is one less the variance of the tasks' estimated deviations over that of the true ones (Gelman &
Pardoe 2006). Under the model its expectation is the mean of the tasks' factors, and so it is estimated: put into the
formula itself, the noise of each task's factor would count as variance. Tasks weigh as in a random-effects mean (Hedges
& Olkin 1985): alike where their factors are known, less where few documents tell theirs.

- A. Gelman, I. Pardoe (2006). Bayesian measures of explained variance and pooling in multilevel (hierarchical) models.
  Technometrics 48, 241-251.
- L. V. Hedges, I. Olkin (1985). Statistical methods for meta-analysis. Academic Press.

D tasks, n documents of one task.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
    factors = [_factor(nats_N3[rows], tokens_N[rows]) for rows in task_rows]
    return _overall([factor for factor in factors if factor is not None]), [
        _interval(*(factor or _UNKNOWN)) for factor in factors
    ]


class _Factor(NamedTuple):
    """An estimate with its variance and the degrees of freedom of that."""

    estimate: float
    variance: float
    degrees: float


_UNKNOWN = _Factor(np.nan, np.nan, np.nan)


def _factor(nats_n3: np.ndarray, tokens_n: np.ndarray) -> _Factor | None:
    """Of one task; None where its documents are too few, or do not tell no pooling from complete pooling."""
    if len(tokens_n) < FEWEST_DOCUMENTS:
        return None
    root_n = np.sqrt(tokens_n)
    difference_n2 = (nats_n3[:, :2] - nats_n3[:, 2:]) / root_n[:, None]
    per_token_2 = root_n @ difference_n2 / tokens_n.sum()
    own_n, pooled_n = (difference_n2 - root_n[:, None] * per_token_2).T
    square, degrees = own_n @ own_n, len(tokens_n) - 2
    if not square > _ALIKE * (nats_n3**2).sum():
        return None
    share = own_n @ pooled_n / square
    influence_n = own_n * (pooled_n - share * own_n) / square
    return _Factor(float(1 - share), float(influence_n @ influence_n) * len(tokens_n) / degrees, degrees)


def _overall(tasks: list[_Factor]) -> Interval:
    """The random-effects mean, for these tasks: its interval is over documents alone."""
    if not tasks:
        return _interval(*_UNKNOWN)
    factor_D, variance_D, degrees_D = np.array(tasks).T
    between = max(0.0, factor_D.var(ddof=1) - variance_D.mean()) if len(tasks) > 1 else 0.0
    total_D = np.maximum(between + variance_D, np.finfo(float).tiny)
    weight_D = total_D.min() / total_D
    weight_D /= weight_D.sum()
    part_D = weight_D**2 * variance_D
    degrees = part_D.sum() ** 2 / (part_D**2 / degrees_D).sum() if part_D.any() else degrees_D.sum()
    return _interval(weight_D @ factor_D, part_D.sum(), degrees)


def _interval(factor: float, variance: float, degrees: float) -> Interval:
    half_width = float(t_quantile(degrees)) * variance**0.5
    return Interval(float(factor), float(factor - half_width), float(factor + half_width))
