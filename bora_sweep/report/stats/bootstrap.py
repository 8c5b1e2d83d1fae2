"""A paired bootstrap over documents, within tasks, with intervals by Student's t.

N documents, M settings (values of tau, methods; seeds pooled), J trials, S replicates, D tasks, H strata, C contrasts,
n documents of one stratum.

Percentile intervals are too narrow for a task with few documents, for two reasons: n draws of n documents have a
variance that is too small by (n - 1) / n, and percentiles ignore that the spread is itself estimated. Therefore n - 1
documents are drawn, each with weight n / (n - 1) (Rao & Wu 1988), and the interval is the estimate plus or minus
standard errors by Student's t. Its degrees of freedom count documents by their weights, tokens or 1 (Kish 1965), and
are combined over tasks by Satterthwaite (1946).

Where all documents of a task score alike by a metric, their variance is 0. Over all tasks together it counts as 0: the
sum of the tasks' variances is right on average. Alone it says nothing of the next document, and there is no interval.

- J. N. K. Rao, C. F. J. Wu (1988). Resampling inference with complex survey data. JASA 83, 231-241.
- L. Kish (1965). Survey Sampling. Wiley.
- F. E. Satterthwaite (1946). An approximate distribution of estimates of variance components. Biometrics 2, 110-114.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bora_sweep.report.stats.document_scores import DocumentScores
from bora_sweep.report.stats.interval import Contrast, Interval
from bora_sweep.report.stats.seed_noise import SeedNoise, estimate_seed_noise

REPLICATES = 1_000
_CELLS = 4_000_000  # of a counts array, 32 MB each: bounds the memory whatever the size of a task


@dataclass(frozen=True)
class Bootstrap:
    """Mean value of each setting over all documents, such as nats per token: as observed, and in each replicate."""

    documents: DocumentScores
    mean_M: np.ndarray
    mean_SM: np.ndarray
    """Varies over documents alone; `with_seeds` adds the variance over seeds."""
    seed_noise: SeedNoise | None
    """None where no setting has several seeds."""

    def contrast(self, setting: int, reference: int | None = None) -> Contrast:
        """Mean value of a setting, less that of a reference on the same documents if one is given."""
        value_N, mean, mean_S = (
            values[..., setting] - (0 if reference is None else values[..., reference])
            for values in (self.documents.value_NM, self.mean_M, self.mean_SM)
        )
        variance, degrees = mean_S.var(), _pooled_degrees(self.documents, value_N)
        error = variance**0.5 if len(value_N) > 1 else np.nan
        seed_variance = _seed_variance(self.seed_noise, setting, reference)
        return Contrast(
            np.asarray(mean),
            *_add_variance(np.asarray(error), np.asarray(degrees), seed_variance),
            measure=self.documents.measure,
            documents_agree=setting != reference and bool(self.documents.agree(value_N, self.documents.strata).all()),
        )

    def level(self, setting: int) -> Interval:
        """Micro perplexity of a setting, or its mean score over all documents."""
        return self.contrast(setting).level()

    def difference(self, setting: int, reference: int) -> Interval:
        """`perplexity(setting) / perplexity(reference) - 1`, or the difference of two mean scores.

        Both are on the same resampled documents.
        """
        return self.contrast(setting, reference).difference()

    def with_seeds(self, seed: int = 0) -> np.ndarray:
        """`mean_SM` plus a draw of each setting's noise over seeds, where that was estimated."""
        if self.seed_noise is None:
            return self.mean_SM
        rng, fits_M = np.random.default_rng(seed), self.seed_noise.num_fits_M
        scale_M = np.sqrt(np.where(fits_M > 0, self.seed_noise.paired_variance / np.maximum(fits_M, 1), 0))
        drawn_SM = rng.standard_t(self.seed_noise.paired_degrees, self.mean_SM.shape)
        return self.mean_SM + scale_M * drawn_SM


def paired_bootstrap(documents: DocumentScores, replicates: int = REPLICATES, seed: int = 0) -> Bootstrap:
    """Resample each task's documents with replacement, the same draw for every setting (Rao & Wu 1988).

    The tasks are fixed: intervals cover new documents of these tasks, and new fits where some setting has several
    seeds. Tasks with a single document are resampled together, as if they were one task.

    Args:
        documents: Scores of N documents under M settings, from `align_documents`.
        replicates: S, the number of bootstrap replicates.
        seed: Fixes the draws.
    """
    rng = np.random.default_rng(seed)
    values_NC = np.column_stack([documents.value_NM, documents.weight_N])
    totals_SC = np.zeros((replicates, values_NC.shape[1]))
    for rows_n in documents.strata:
        totals_SC += _resampled_totals(rng, replicates, values_NC[rows_n])
    observed_C = values_NC.sum(axis=0)
    mean_J = documents.value_NJ.sum(axis=0) / documents.weight_N.sum()
    return Bootstrap(
        documents=documents,
        mean_M=observed_C[:-1] / observed_C[-1],
        mean_SM=totals_SC[:, :-1] / totals_SC[:, -1:],
        seed_noise=estimate_seed_noise(documents, mean_J),
    )


def task_contrasts(
    documents: DocumentScores, pairs: Sequence[tuple[int, int | None]], replicates: int = REPLICATES, seed: int = 0
) -> Contrast:
    """`Bootstrap.contrast` of each task on its own documents: arrays DC, tasks in the order of `documents.tasks`.

    Args:
        documents: Scores of N documents under M settings, from `align_documents`.
        pairs: C pairs of a setting and its reference; None instead of a reference gives the setting's own mean.
        replicates: S, the number of bootstrap replicates.
        seed: Fixes the draws.
    """
    rng = np.random.default_rng(seed)
    value_NM, starts_D, counts_D = documents.value_NM, documents.starts_D, documents.counts_D
    columns = [value_NM[:, m] - (0 if r is None else value_NM[:, r]) for m, r in pairs]
    agree = [documents.agree(c_N, documents.task_rows) & (m != r) for c_N, (m, r) in zip(columns, pairs, strict=True)]
    values_NC = np.column_stack([*columns, documents.weight_N])
    error_DC = np.full((len(starts_D), len(pairs)), np.nan)
    for d in np.flatnonzero(counts_D > 1):
        totals_SC = _resampled_totals(rng, replicates, values_NC[starts_D[d] : starts_D[d] + counts_D[d]])
        error_DC[d] = (totals_SC[:, :-1] / totals_SC[:, -1:]).std(axis=0)
    totals_DC = np.add.reduceat(values_NC, starts_D, axis=0)
    degrees_D = _effective_documents(documents.weight_N, starts_D) - 1
    mean_DC, weight_D = totals_DC[:, :-1] / totals_DC[:, -1:], totals_DC[:, -1]
    mean_DJ = np.add.reduceat(documents.value_NJ, starts_D, axis=0) / weight_D[:, None]
    seed_noise = estimate_seed_noise(documents, mean_DJ)
    parts = [
        _add_variance(error_DC[:, c], degrees_D, _seed_variance(seed_noise, *pair)) for c, pair in enumerate(pairs)
    ]
    return Contrast(
        mean_DC,
        *(np.column_stack(part) for part in zip(*parts, strict=True)),
        measure=documents.measure,
        documents_agree=np.column_stack(agree),
    )


def _seed_variance(noise: SeedNoise | None, setting: int, reference: int | None) -> tuple[np.ndarray, int] | None:
    if noise is None:
        return None
    return noise.of_setting(setting) if reference is None else noise.of_difference(setting, reference)


def _add_variance(
    error: np.ndarray, degrees: np.ndarray, seed_variance: tuple[np.ndarray, int] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Standard error and degrees of freedom over documents and, if known, over seeds (Satterthwaite 1946)."""
    degrees = np.maximum(degrees, 1.0)
    if seed_variance is None:
        return error, degrees
    variance, seed_degrees = seed_variance
    total = error**2 + variance
    with np.errstate(divide="ignore", invalid="ignore"):
        combined = total**2 / (error**4 / degrees + variance**2 / seed_degrees)
    return np.sqrt(total), np.where(total > 0, combined, degrees)


def _resampled_totals(rng: np.random.Generator, replicates: int, values_nC: np.ndarray) -> np.ndarray:
    """totals_SC of n - 1 draws with replacement, scaled to n; a single document is itself in each replicate."""
    n = len(values_nC)
    if n < 2:
        return np.repeat(values_nC, replicates, axis=0)
    step = max(1, _CELLS // n)
    blocks = [min(step, replicates - first) for first in range(0, replicates, step)]
    return np.concatenate([n / (n - 1) * _resampled_counts(rng, block, n) @ values_nC for block in blocks])


def _resampled_counts(rng: np.random.Generator, replicates: int, n: int) -> np.ndarray:
    """counts_Sn: how often each of n documents is drawn in n - 1 draws with replacement."""
    cell_Sn = rng.integers(0, n, (replicates, n - 1)) + n * np.arange(replicates)[:, None]
    return np.bincount(cell_Sn.ravel(), minlength=replicates * n).reshape(replicates, n).astype(float)


def _pooled_degrees(documents: DocumentScores, value_N: np.ndarray) -> float:
    """Degrees of freedom of the standard error over all strata, each weighted by its variance (Satterthwaite 1946)."""
    order_N, starts_H = documents.strata_order
    value_N, weight_N = value_N[order_N], documents.weight_N[order_N]
    residual_N = value_N - value_N.sum() / weight_N.sum() * weight_N
    counts_H = np.diff(np.r_[starts_H, len(order_N)])
    means_H = np.add.reduceat(residual_N, starts_H) / counts_H
    variance_H = np.add.reduceat((residual_N - np.repeat(means_H, counts_H)) ** 2, starts_H)
    variance_H *= counts_H / np.maximum(counts_H - 1, 1)
    degrees_H = np.maximum(_effective_documents(weight_N, starts_H) - 1, 1.0)
    if not variance_H.any():
        return float(degrees_H.sum())
    return float(variance_H.sum() ** 2 / (variance_H**2 / degrees_H).sum())


def _effective_documents(weight_N: np.ndarray, starts_H: np.ndarray) -> np.ndarray:
    """Effective number of documents of each stratum: (sum of weights)^2 / sum of weights^2 (Kish 1965)."""
    return np.add.reduceat(weight_N, starts_H) ** 2 / np.add.reduceat(weight_N**2, starts_H)
