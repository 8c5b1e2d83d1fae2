"""Cosines of tasks' mean gradients with the noise taken off, and their intervals.

A task's documents lie in F folds. s_kf is the sum of the scores (gradients of the log likelihood) of fold f, n_kf its
tokens, and g_k = sum_f s_kf / sum_f n_kf. Different folds have independent noise, so products of them are unbiased:

    ||E g_k||^2 = E sum_{f != h} <s_kf, s_kh> / sum_{f != h} n_kf n_kh,

while ||g_k||^2 has the trace of the noise's covariance in it. Products of different tasks are unbiased as they are. So
the Gram matrix of the E g_k is known without bias, and with it that of E g_k - sum_e w_e E g_e, where w_e is a task's
share of the tokens: what a task has beside the part that all share.

Shapes: K tasks (J of a block), F folds of each, E of them kept, P coordinates.
"""

from dataclasses import dataclass

import numpy as np

Z95 = 1.96
"""Half the width of a 95% interval in standard errors."""
LEAST_SHARE = 0.05
"""Of the tasks' mean squared norm: the least that a task's own is taken for, so that nothing is divided by noise."""
BLOCK = 256
"""Tasks whose folds meet all tasks at a time."""


@dataclass(frozen=True)
class Cosines:
    """How alike each two of K tasks are."""

    cosine_KK: np.ndarray
    """Of what tasks have beside the part that all share, from -1 to 1; 1 on the diagonal."""
    error_KK: np.ndarray
    """Standard errors, by a jackknife over the folds of both; 0 on the diagonal, NaN with a task of one fold."""
    signal_K: np.ndarray
    """Squared norms with the noise taken off, at least `LEAST_SHARE` of their mean, which tasks of one fold have."""
    noise_K: np.ndarray
    """What the noise adds to the squared norms."""
    weight_K: np.ndarray
    """Each task's share of the tokens."""

    @property
    def low_KK(self) -> np.ndarray:
        """The lower ends of 95% intervals."""
        return np.clip(self.cosine_KK - Z95 * self.error_KK, -1, 1)

    @property
    def high_KK(self) -> np.ndarray:
        """The upper ends."""
        return np.clip(self.cosine_KK + Z95 * self.error_KK, -1, 1)


def cosines(score_KFP: np.ndarray, tokens_KF: np.ndarray) -> Cosines:
    """How alike tasks are by the sums of their documents' scores.

    Args:
        score_KFP: Sums of scores of each fold; zero in a fold without documents.
        tokens_KF: Scored tokens of each fold, zero in a fold without documents; every task has some.
    """
    tokens_KF = tokens_KF.astype(np.float64)
    mean_KP = score_KFP.sum(1, dtype=np.float64) / tokens_KF.sum(1)[:, None]
    weight_K = tokens_KF.sum(1) / tokens_KF.sum()
    blocks = [slice(start, start + BLOCK) for start in range(0, len(mean_KP), BLOCK)]
    raw_KK = np.concatenate([mean_KP[block] @ mean_KP.T for block in blocks])
    own_KFF = np.concatenate([_own(score_KFP[block]) for block in blocks])
    norm_K = squared_norm(own_KFF, tokens_KF)
    lone_K = np.isnan(norm_K)  # one fold: its noise is unknown, and its norm is not used
    with_noise_K = np.diagonal(raw_KK).copy()
    np.fill_diagonal(raw_KK, np.where(lone_K, with_noise_K, norm_K))
    along_K = raw_KK @ weight_K
    gram_KK = raw_KK - along_K[:, None] - along_K + weight_K @ along_K
    signal_K, least = _signal(np.diagonal(gram_KK), lone_K)
    variance_KK = np.empty_like(gram_KK)
    for block in blocks:
        with_all_JFK = score_KFP[block].astype(np.float64) @ mean_KP.T
        variance_KK[block] = _jackknife(
            with_all_JFK, own_KFF[block], tokens_KF[block], np.arange(len(mean_KP))[block], along_K, weight_K, signal_K,
            least,
        )  # fmt: skip
    cosine_KK = np.clip(gram_KK / np.sqrt(np.outer(signal_K, signal_K)), -1, 1)
    error_KK = np.sqrt(variance_KK + variance_KK.T)
    np.fill_diagonal(cosine_KK, 1)
    np.fill_diagonal(error_KK, 0)
    noise_K = np.where(lone_K, np.diagonal(gram_KK) - signal_K, with_noise_K - norm_K)
    return Cosines((cosine_KK + cosine_KK.T) / 2, error_KK, signal_K, np.maximum(noise_K, 0), weight_K)


def squared_norm(own_KFF: np.ndarray, tokens_KF: np.ndarray) -> np.ndarray:
    """||E g_k||^2 of each task, unbiased, by products of different folds; NaN with less than two folds of text.

    Args:
        own_KFF: <s_kf, s_kh> of each two folds of a task.
        tokens_KF: As for `cosines`.
    """
    products_K = own_KFF.sum((1, 2)) - np.trace(own_KFF, axis1=1, axis2=2)
    pairs_K = tokens_KF.sum(1) ** 2 - (tokens_KF**2).sum(1)
    is_one_K = (tokens_KF > 0).sum(1) < 2
    return np.divide(products_K, pairs_K, out=np.full(len(pairs_K), np.nan), where=~is_one_K)


def _own(score_JFP: np.ndarray) -> np.ndarray:
    score_JFP = score_JFP.astype(np.float64)
    return score_JFP @ score_JFP.transpose(0, 2, 1)


def _signal(norm_K: np.ndarray, lone_K: np.ndarray) -> tuple[np.ndarray, float]:
    """The squared norms that cosines are divided by, and the least of them that is taken."""
    mean = float(norm_K[~lone_K].mean()) if not lone_K.all() else 0.0
    mean = max(mean, np.finfo(float).eps * max(float(np.abs(norm_K).max()), np.finfo(float).tiny))
    return np.where(lone_K, mean, np.maximum(norm_K, LEAST_SHARE * mean)), LEAST_SHARE * mean


def _jackknife(
    with_all_JFK: np.ndarray,
    own_JFF: np.ndarray,
    tokens_JF: np.ndarray,
    task_J: np.ndarray,
    along_K: np.ndarray,
    weight_K: np.ndarray,
    signal_K: np.ndarray,
    least: float,
) -> np.ndarray:
    """The variances of cosines by leaving out the folds of the first task, one after the other.

    Args:
        with_all_JFK: <s_jf, g_k>.
        own_JFF: <s_jf, s_jh>.
        tokens_JF: Tokens of these folds.
        task_J: Which of the K tasks these are.
        along_K: <g_k, sum_e w_e g_e>, of all documents.
        weight_K: Each task's share of the tokens.
        signal_K: Squared norms, of all documents.
        least: The least squared norm that is taken.
    """
    rows, num_folds = np.arange(len(task_J)), tokens_JF.shape[1]
    is_used_JF = tokens_JF > 0
    whole_J, overall = squared_norm(own_JFF, tokens_JF), weight_K @ along_K
    left_out = []
    for fold in range(num_folds):
        kept = np.arange(num_folds) != fold
        norm_J = squared_norm(own_JFF[:, kept][:, :, kept], tokens_JF[:, kept])
        norm_J = np.where(np.isnan(norm_J), whole_J, norm_J)  # two folds: one is left, and the norm stays
        total_J = np.maximum(tokens_JF[:, kept].sum(1), 1)
        row_JK = with_all_JFK[:, kept].sum(1) / total_J[:, None]
        row_JK[rows, task_J] = norm_J
        along_J = row_JK @ weight_K
        own_J = np.maximum(norm_J - 2 * along_J + overall, least)
        left_out.append((row_JK - along_J[:, None] - along_K + overall) / np.sqrt(own_J[:, None] * signal_K))
    cosine_FJK, used_FJ1 = np.stack(left_out), is_used_JF.T[:, :, None]
    count_J1 = is_used_JF.sum(1)[:, None]
    mean_JK = (cosine_FJK * used_FJ1).sum(0) / count_J1
    return (count_J1 - 1) / count_J1 * (used_FJ1 * (cosine_FJK - mean_JK) ** 2).sum(0)
