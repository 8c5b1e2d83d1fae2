"""Intervals from the documents' scores: a bootstrap that is paired over documents, within tasks; and two for tau.

N documents, M settings (values of tau, seeds pooled), S replicates, n documents of one task, V values of tau, G points
of a grid over log tau.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.integrate import cumulative_trapezoid
from scipy.interpolate import PchipInterpolator

from bora_sweep.errors import InputError

REPLICATES = 1_000
_GRID = 20_001
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
class Documents:
    """The same documents under M settings, ordered by task; nats are means over a setting's trials (its seeds)."""

    task_N: np.ndarray
    tokens_N: np.ndarray
    nats_NM: np.ndarray

    def of_task(self, task: str) -> "Documents":
        """The documents of one task."""
        first, last = np.searchsorted(self.task_N, task), np.searchsorted(self.task_N, task, side="right")
        return Documents(self.task_N[first:last], self.tokens_N[first:last], self.nats_NM[first:last])


@dataclass(frozen=True)
class Bootstrap:
    """Nats per token of each setting: as observed, and in each replicate. Perplexities are their exponentials."""

    nats_per_token_M: np.ndarray
    nats_per_token_SM: np.ndarray

    def perplexity(self, setting: int) -> Interval:
        """Micro perplexity of a setting."""
        return _interval(self.nats_per_token_M[setting], self.nats_per_token_SM[:, setting])

    def relative_difference(self, setting: int, reference: int) -> Interval:
        """`perplexity(setting) / perplexity(reference) - 1`, both on the same resampled documents."""
        ratio = _interval(
            self.nats_per_token_M[setting] - self.nats_per_token_M[reference],
            self.nats_per_token_SM[:, setting] - self.nats_per_token_SM[:, reference],
        )
        return Interval(ratio.estimate - 1, ratio.low - 1, ratio.high - 1)


def _interval(observed: float, replicates_S: np.ndarray) -> Interval:
    """Percentiles of the logarithm, then exp: swapping a setting with its reference then inverts the ends exactly."""
    with np.errstate(over="ignore"):
        low, high = np.exp(np.quantile(replicates_S, [0.025, 0.975]))
        return Interval(float(np.exp(observed)), float(low), float(high))


def align_documents(scores: pd.DataFrame, settings: Sequence[int]) -> Documents:
    """Rows of `document_scores`, matched document by document.

    Args:
        scores: `document_scores` with `run`, and `setting`, which pools the trials that share it.
        settings: Values of `setting`, in the order of the M columns.

    Raises:
        InputError: A trial lacks a document, has one twice, or scored another number of tokens than the others.
    """
    document_n = list(zip(scores["task"], scores["split"], scores["document_id"], strict=True))
    trial_n = list(zip(scores["setting"], scores["run"], scores["trial_id"], strict=True))
    documents, trials = sorted(set(document_n)), sorted(set(trial_n))
    row_of, column_of = {d: i for i, d in enumerate(documents)}, {t: j for j, t in enumerate(trials)}
    at = np.array([row_of[d] for d in document_n], dtype=int), np.array([column_of[t] for t in trial_n], dtype=int)
    count_NJ, tokens_NJ, nats_NJ = np.zeros((3, len(documents), len(trials)))  # J trials
    np.add.at(count_NJ, at, 1)
    tokens_NJ[at], nats_NJ[at] = scores["num_tokens"], scores["nll_nats"]
    _check(documents, trials, count_NJ, tokens_NJ)
    setting_J = np.array([setting for setting, _, _ in trials])
    return Documents(
        task_N=np.array([task for task, _, _ in documents], dtype=object),
        tokens_N=tokens_NJ[:, 0],
        nats_NM=np.column_stack([nats_NJ[:, setting_J == setting].mean(axis=1) for setting in settings]),
    )


def _check(documents: list[tuple], trials: list[tuple], count_NJ: np.ndarray, tokens_NJ: np.ndarray) -> None:
    """Every trial scored every document once, and the same tokens of it."""
    for n, j in np.argwhere(count_NJ != 1)[:1]:
        (task, split, document), (_, run, trial) = documents[n], trials[j]
        found = f"{run}, trial {trial}: document {document!r} of task {task!r} ({split})"
        if count_NJ[n, j] > 1:
            raise InputError(f"{found} is scored twice: ids must be unique within a task; mend data.id_column")
        raise InputError(f"{found} has no score, but another trial's has: compare runs of the same data and splits")
    for n, j in np.argwhere(tokens_NJ != tokens_NJ[:, :1])[:1]:
        (task, split, document), (_, run, trial) = documents[n], trials[j]
        raise InputError(
            f"{run}, trial {trial}: document {document!r} of task {task!r} ({split}) has {tokens_NJ[n, j]:.0f} tokens, "
            f"{tokens_NJ[n, 0]:.0f} in trial {trials[0][2]}: compare runs of the same tokenizer and model.max_tokens"
        )


def paired_bootstrap(documents: Documents, replicates: int = REPLICATES, seed: int = 0) -> Bootstrap:
    """Resamples each task's documents with replacement, the same draw for every setting.

    Tasks are kept as they are: the intervals speak of new documents of these tasks, given these fits.

    Args:
        documents: From `align_documents`.
        replicates: S.
        seed: Fixes the draws.
    """
    rng = np.random.default_rng(seed)
    values_NC = np.column_stack([documents.nats_NM, documents.tokens_N])
    _, starts = np.unique(documents.task_N, return_index=True)
    totals_SC = np.zeros((replicates, values_NC.shape[1]))
    for values_nC in np.split(values_NC, np.sort(starts)[1:]):
        step = max(1, _CELLS // len(values_nC))
        for first in range(0, replicates, step):
            block = slice(first, min(first + step, replicates))
            totals_SC[block] += _resampled_counts(rng, block.stop - block.start, len(values_nC)) @ values_nC
    observed_C = values_NC.sum(axis=0)
    return Bootstrap(observed_C[:-1] / observed_C[-1], totals_SC[:, :-1] / totals_SC[:, -1:])


def _resampled_counts(rng: np.random.Generator, replicates: int, n: int) -> np.ndarray:
    """How often each of n documents is drawn in n draws with replacement, shape (replicates, n)."""
    cell_Sn = rng.integers(0, n, (replicates, n)) + n * np.arange(replicates)[:, None]
    return np.bincount(cell_Sn.ravel(), minlength=replicates * n).reshape(replicates, n).astype(float)


def tau_posterior(taus_V: np.ndarray, nll_nats_V: np.ndarray) -> Interval:
    """p(tau | validation) ~ exp(-nll(tau)), uniform in log tau between the ends: exp of log tau's mean, central 95%.

    nll is interpolated over log tau by PCHIP, which has no extremes of its own between the fits.

    Args:
        taus_V: Two or more, ascending, 0 < tau < inf.
        nll_nats_V: Finite sums over the validation split.
    """
    log_tau_G = np.linspace(np.log(taus_V[0]), np.log(taus_V[-1]), _GRID)
    nll_G = PchipInterpolator(np.log(taus_V), nll_nats_V)(log_tau_G)
    density_G = np.exp(nll_G.min() - nll_G)
    below_G = cumulative_trapezoid(density_G, log_tau_G, initial=0)
    mean = np.trapezoid(density_G * log_tau_G, log_tau_G) / below_G[-1]
    low, high = np.interp([0.025, 0.975], below_G / below_G[-1], log_tau_G)
    return Interval(float(np.exp(mean)), float(np.exp(low)), float(np.exp(high)))


def best_tau(taus_V: np.ndarray, bootstrap: Bootstrap) -> Interval:
    """The tau of the lowest nats per token, as observed and in the replicates: central 95%.

    Args:
        taus_V: Ascending; 0 and inf may be among them.
        bootstrap: Over validation documents, its settings in the order of `taus_V`.
    """
    observed = lowest_tau(taus_V, bootstrap.nats_per_token_M[None])[0]
    # An order statistic: between a finite value and inf there is nothing to interpolate.
    low, high = np.quantile(lowest_tau(taus_V, bootstrap.nats_per_token_SM), [0.025, 0.975], method="inverted_cdf")
    return Interval(float(observed), float(low), float(high))


def lowest_tau(taus_V: np.ndarray, nll_SV: np.ndarray) -> np.ndarray:
    """Where each of S curves is lowest: the vertex of the parabola over log tau by its lowest point and the neighbours.

    An interpolant without extremes of its own is lowest at one of the fits, and would tell no more than which. At the
    ends of `taus_V`, and beside 0 and inf, there is no parabola: there it is the fit itself.
    """
    with np.errstate(divide="ignore"):
        log_tau_V = np.log(taus_V)
    lowest_S = nll_SV.argmin(axis=1)
    tau_S = taus_V[lowest_S]
    for v in range(1, len(taus_V) - 1):
        left, right = log_tau_V[v] - log_tau_V[v - 1], log_tau_V[v + 1] - log_tau_V[v]
        if np.isfinite([left, right]).all():
            nll_n3 = nll_SV[lowest_S == v, v - 1 : v + 2]
            fall_n, rise_n = nll_n3[:, 0] - nll_n3[:, 1], nll_n3[:, 2] - nll_n3[:, 1]
            shift_n = (fall_n * right**2 - rise_n * left**2) / (2 * (fall_n * right + rise_n * left))
            tau_S[lowest_S == v] *= np.exp(shift_n)
    return tau_S
