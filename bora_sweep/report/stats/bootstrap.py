"""Intervals from the documents' scores: a bootstrap that is paired over documents, within tasks, and calibrated by t.

N documents, M settings (values of tau, methods; seeds pooled), J trials, S replicates, D tasks, H strata, C contrasts,
n documents of one task.

Percentiles would make a task with few documents too sure, twice over: n draws of n documents vary too little, by
(n - 1) / n, and that the spread is itself estimated is forgotten. So n - 1 documents are drawn, each weighing
n / (n - 1) (Rao & Wu 1988), and the interval is the estimate plus or minus standard errors by Student's t, whose
degrees of freedom count documents by their tokens (Kish 1965) and are joined over tasks by Satterthwaite (1946).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats

from bora_sweep.report.stats.documents import Documents
from bora_sweep.report.stats.seed_noise import SeedNoise, seed_noise

REPLICATES = 1_000
LEVEL = 0.95
_CELLS = 4_000_000  # of a counts array, 32 MB each: bounds the memory whatever the size of a task


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its 95% interval."""

    estimate: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def __neg__(self) -> "Interval":
        return Interval(-self.estimate, -self.high, -self.low)


@dataclass(frozen=True)
class Contrast:
    """Nats per token, of settings or of differences between them, with standard errors; arrays of one shape."""

    nats_per_token: np.ndarray
    standard_error: np.ndarray
    """NaN where there are too few documents to tell."""
    degrees: np.ndarray

    @cached_property
    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the 95% interval."""
        reach = student(self.degrees) * self.standard_error
        return self.nats_per_token - reach, self.nats_per_token + reach

    @cached_property
    def p_value(self) -> np.ndarray:
        """Of no difference, two-sided; 1 where there are too few documents."""
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.abs(self.nats_per_token) / self.standard_error
        p = 2 * stats.t.sf(t, self.degrees)
        return np.where(np.isnan(p), 1.0, p)

    def perplexity(self, *at: int) -> Interval:
        """exp of one of them: swapping a setting with its reference inverts estimate and ends exactly."""
        with np.errstate(over="ignore"):
            low, high = (float(np.exp(end[at])) for end in self.ends)
            return Interval(float(np.exp(self.nats_per_token[at])), low, high)

    def relative(self, *at: int) -> Interval:
        """`perplexity(setting) / perplexity(reference) - 1` of one of them."""
        ratio = self.perplexity(*at)
        return Interval(ratio.estimate - 1, ratio.low - 1, ratio.high - 1)


@dataclass(frozen=True)
class Bootstrap:
    """Nats per token of each setting over all documents: as observed, and in each replicate."""

    documents: Documents
    nats_per_token_M: np.ndarray
    nats_per_token_SM: np.ndarray
    """Of documents alone; `with_seeds` adds how fits vary."""
    seeds: SeedNoise | None

    def contrast(self, setting: int, reference: int | None = None) -> Contrast:
        """Nats per token of a setting, or above those of a reference on the same documents."""
        nats_N, nats, nats_S = (
            values[..., setting] - (0 if reference is None else values[..., reference])
            for values in (self.documents.nats_NM, self.nats_per_token_M, self.nats_per_token_SM)
        )
        variance, degrees = nats_S.var(), _degrees(self.documents, nats_N)
        error = variance**0.5 if len(nats_N) > 1 else np.nan
        noise = _seed_variance(self.seeds, setting, reference)
        return Contrast(np.asarray(nats), *_joined(np.asarray(error), np.asarray(degrees), noise))

    def perplexity(self, setting: int) -> Interval:
        """Micro perplexity of a setting."""
        return self.contrast(setting).perplexity()

    def relative_difference(self, setting: int, reference: int) -> Interval:
        """`perplexity(setting) / perplexity(reference) - 1`, both on the same resampled documents."""
        return self.contrast(setting, reference).relative()

    def with_seeds(self, seed: int = 0) -> np.ndarray:
        """`nats_per_token_SM` with a draw of each setting's noise over seeds added, where that is known."""
        if self.seeds is None:
            return self.nats_per_token_SM
        rng, fits_M = np.random.default_rng(seed), self.seeds.num_fits_M
        scale_M = np.sqrt(np.where(fits_M > 0, self.seeds.paired_variance / np.maximum(fits_M, 1), 0))
        drawn_SM = rng.standard_t(self.seeds.paired_degrees, self.nats_per_token_SM.shape)
        return self.nats_per_token_SM + scale_M * drawn_SM


def student(degrees: np.ndarray | float) -> np.ndarray:
    """How many standard errors a 95% interval reaches to either side."""
    return stats.t.ppf((1 + LEVEL) / 2, degrees)


def paired_bootstrap(documents: Documents, replicates: int = REPLICATES, seed: int = 0) -> Bootstrap:
    """Resamples each task's documents with replacement, the same draw for every setting.

    Tasks are kept as they are: the intervals speak of new documents of these tasks; and of new fits of these tasks
    where some setting has several seeds. Tasks with a single document are resampled together, as if they were one.

    Args:
        documents: From `align_documents`.
        replicates: S.
        seed: Fixes the draws.
    """
    rng = np.random.default_rng(seed)
    values_NC = np.column_stack([documents.nats_NM, documents.tokens_N])
    totals_SC = np.zeros((replicates, values_NC.shape[1]))
    for at_n in documents.strata:
        totals_SC += _resampled_totals(rng, replicates, values_NC[at_n])
    observed_C = values_NC.sum(axis=0)
    per_token_J = documents.nats_NJ.sum(axis=0) / documents.tokens_N.sum()
    return Bootstrap(
        documents=documents,
        nats_per_token_M=observed_C[:-1] / observed_C[-1],
        nats_per_token_SM=totals_SC[:, :-1] / totals_SC[:, -1:],
        seeds=seed_noise(documents, per_token_J),
    )


def task_contrasts(
    documents: Documents, pairs: Sequence[tuple[int, int | None]], replicates: int = REPLICATES, seed: int = 0
) -> Contrast:
    """`Bootstrap.contrast` of each task on its own: arrays DC, tasks in the order of `documents.tasks`.

    Args:
        documents: From `align_documents`.
        pairs: C of a setting and its reference, None for the setting's own level.
        replicates: S.
        seed: Fixes the draws.
    """
    rng = np.random.default_rng(seed)
    nats_NM, starts_D, counts_D = documents.nats_NM, documents.starts_D, documents.counts_D
    columns = [nats_NM[:, m] - (0 if r is None else nats_NM[:, r]) for m, r in pairs]
    values_NC = np.column_stack([*columns, documents.tokens_N])
    error_DC = np.full((len(starts_D), len(pairs)), np.nan)
    for d in np.flatnonzero(counts_D > 1):
        totals_SC = _resampled_totals(rng, replicates, values_NC[starts_D[d] : starts_D[d] + counts_D[d]])
        error_DC[d] = (totals_SC[:, :-1] / totals_SC[:, -1:]).std(axis=0)
    totals_DC = np.add.reduceat(values_NC, starts_D, axis=0)
    degrees_D = _kish(documents.tokens_N, starts_D) - 1
    nats_DC = totals_DC[:, :-1] / totals_DC[:, -1:]
    tokens_D = totals_DC[:, -1]
    per_token_DJ = np.add.reduceat(documents.nats_NJ, starts_D, axis=0) / tokens_D[:, None]
    seeds = seed_noise(documents, per_token_DJ)
    joined = [_joined(error_DC[:, c], degrees_D, _seed_variance(seeds, *pair)) for c, pair in enumerate(pairs)]
    return Contrast(nats_DC, *(np.column_stack(part) for part in zip(*joined, strict=True)))


def _seed_variance(seeds: SeedNoise | None, setting: int, reference: int | None) -> tuple[np.ndarray, int] | None:
    if seeds is None:
        return None
    return seeds.of_level(setting) if reference is None else seeds.of_difference(setting, reference)


def _joined(
    error: np.ndarray, degrees: np.ndarray, noise: tuple[np.ndarray, int] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Standard error and degrees of freedom of the documents', and of the seeds', if known (Satterthwaite)."""
    if noise is None:
        return error, np.maximum(degrees, 1.0)
    variance, known = noise
    total = error**2 + variance
    with np.errstate(divide="ignore", invalid="ignore"):
        joined = total**2 / (error**4 / np.maximum(degrees, 1.0) + variance**2 / known)
    return np.sqrt(total), np.where(total > 0, joined, np.maximum(degrees, 1.0))


def _resampled_totals(rng: np.random.Generator, replicates: int, values_nC: np.ndarray) -> np.ndarray:
    """totals_SC of n - 1 draws with replacement, scaled to n; a single document is itself in each replicate."""
    n = len(values_nC)
    if n < 2:
        return np.repeat(values_nC, replicates, axis=0)
    step = max(1, _CELLS // n)
    blocks = [min(step, replicates - first) for first in range(0, replicates, step)]
    return np.concatenate([n / (n - 1) * _resampled_counts(rng, block, n) @ values_nC for block in blocks])


def _resampled_counts(rng: np.random.Generator, replicates: int, n: int) -> np.ndarray:
    """How often each of n documents is drawn in n - 1 draws with replacement, shape (replicates, n)."""
    cell_Sn = rng.integers(0, n, (replicates, n - 1)) + n * np.arange(replicates)[:, None]
    return np.bincount(cell_Sn.ravel(), minlength=replicates * n).reshape(replicates, n).astype(float)


def _degrees(documents: Documents, nats_N: np.ndarray) -> float:
    """Of the standard error over all strata, by what each adds to the variance."""
    strata = documents.strata
    order_N, starts_H = np.concatenate(strata), np.cumsum([0, *(len(at) for at in strata[:-1])])
    nats_N, tokens_N = nats_N[order_N], documents.tokens_N[order_N]
    left_N = nats_N - nats_N.sum() / tokens_N.sum() * tokens_N
    counts_H = np.diff(np.r_[starts_H, len(order_N)])
    means_H = np.add.reduceat(left_N, starts_H) / counts_H
    variance_H = np.add.reduceat((left_N - np.repeat(means_H, counts_H)) ** 2, starts_H)
    variance_H *= counts_H / np.maximum(counts_H - 1, 1)
    degrees_H = np.maximum(_kish(tokens_N, starts_H) - 1, 1.0)
    if not variance_H.any():
        return float(degrees_H.sum())
    return float(variance_H.sum() ** 2 / (variance_H**2 / degrees_H).sum())


def _kish(tokens_N: np.ndarray, starts_H: np.ndarray) -> np.ndarray:
    """How many documents of equal length know as much: (sum of tokens)^2 / sum of tokens^2, of each stretch."""
    return np.add.reduceat(tokens_N, starts_H) ** 2 / np.add.reduceat(tokens_N**2, starts_H)
