"""Which tasks gain and which lose: a test for each task over its documents, corrected for the number of tasks.

D tasks, n documents of one task, F draws of signs.

A task's p-value is the larger of two:

- The sign-flip test. Under no difference, a document's difference could equally have had the other sign. The test is
  exact for any lengths and variances of the documents, if their differences are symmetric about 0. Its p-value for n
  documents never falls below 2^(1 - n).
- The t test of the interval (`Contrast.p_value`). It accounts for unequal lengths and, where several seeds were
  fitted, for the variance over seeds. So a verdict never contradicts the interval shown with it.

References:

- R. A. Fisher (1935). The Design of Experiments. Oliver & Boyd (the sign-flip test).
- S. Holm (1979). A simple sequentially rejective multiple test procedure. Scand. J. Statist. 6, 65-70.
- W. Hoeffding (1963). Probability inequalities for sums of bounded random variables. JASA 58, 13-30.
"""

import math
from functools import cache
from itertools import count

import numpy as np

from bora_sweep.report.stats.document_scores import DocumentScores
from bora_sweep.report.stats.interval import Contrast

ALPHA = 0.05
FLIPS = 10_000
_ENUMERATED = 12  # documents up to which all 2^(n - 1) signs are tried
_BLOCK = 512  # documents whose signs are in memory at once
GAINS, LOSES, UNKNOWN = "gains", "loses", "no evidence"


def task_p_values(
    documents: DocumentScores, differences: Contrast, column: int, setting: int, reference: int
) -> np.ndarray:
    """p_D of no difference between a setting and a reference, tasks in the order of `documents.tasks`.

    Args:
        documents: Scores of N documents under M settings, from `align_documents`.
        differences: Arrays DC, from `task_contrasts`.
        column: The c of `differences` that holds this setting and reference.
        setting: The setting m that is judged.
        reference: The setting m that it is compared with.
    """
    value_N = documents.value_NM[:, setting] - documents.value_NM[:, reference]
    sign_flip_D = np.array([sign_flip_p(value_n) for value_n in np.split(value_N, documents.starts_D[1:])])
    return np.maximum(differences.p_value[:, column], sign_flip_D)


def sign_flip_p(value_n: np.ndarray) -> float:
    """Share of all signs for which the sum of paired differences is at least as far from 0 as observed (Fisher 1935).

    Up to twelve documents all signs are tried, beyond that `FLIPS` random ones. Where these find none, Hoeffding (1963)
    bounds the p-value: the sum of signed a_n exceeds z sqrt(sum a_n^2) with probability at most exp(-z^2 / 2).
    """
    total, n = abs(value_n.sum()), len(value_n)
    threshold = total * (1 - 1e-9)
    if n <= _ENUMERATED:
        return float((np.abs(_all_signs(n) @ value_n) >= threshold).mean())
    blocks = range(0, n, _BLOCK)
    sums_F = sum(_random_signs(block // _BLOCK)[:, : n - block] @ value_n[block : block + _BLOCK] for block in blocks)
    monte_carlo = (1 + (np.abs(sums_F) >= threshold).sum()) / (1 + FLIPS)
    square = (value_n**2).sum()
    bound = 2 * np.exp(-(total**2) / (2 * square)) if square else 1.0
    return float(min(monte_carlo, bound))


@cache
def _all_signs(n: int) -> np.ndarray:
    """Every choice of n signs whose first is +; the opposite choices give sums equally far from 0."""
    bits = np.arange(2 ** max(n - 1, 0))[:, None] >> np.arange(n - 1) & 1
    return np.column_stack([np.ones(len(bits)), 1.0 - 2 * bits])


@cache
def _random_signs(block: int) -> np.ndarray:
    """F choices of the signs of one block of documents, fixed by the block's number."""
    return np.random.default_rng(block).choice(np.array([-1, 1], np.int8), (FLIPS, _BLOCK)).astype(np.float32)


def sign_flip_limit(num_documents: float) -> float:
    """The smallest p-value of the sign-flip test with this many documents: 2^(1 - n), or what random signs can show."""
    limit = 2.0 ** (1 - num_documents)
    if num_documents <= _ENUMERATED:
        return limit
    return max(limit, min(1 / (1 + FLIPS), 2 * math.exp(-num_documents / 2)))


def can_have_verdict(smallest_D: np.ndarray) -> np.ndarray:
    """Which of D tasks can have a verdict at all, by the smallest p-values that their documents allow.

    Holm's method rejects no less where p-values are smaller, so what it leaves at the smallest it always leaves.
    """
    return holm(smallest_D) < ALPHA


def documents_for_verdict(num_tasks: int) -> int:
    """Test documents that a task needs at least for the first verdict among so many tasks."""
    return next(n for n in count(1) if sign_flip_limit(n) * num_tasks < ALPHA)


def holm(p_D: np.ndarray) -> np.ndarray:
    """p-values adjusted for D tests, by Holm (1979): the i-th smallest times (D - i + 1), never below the one before.

    Rejecting those below alpha makes one false rejection or more with probability at most alpha.
    """
    order_D = np.argsort(p_D, kind="stable")
    steps_D = np.maximum.accumulate(p_D[order_D] * np.arange(len(p_D), 0, -1))
    adjusted_D = np.empty_like(p_D, dtype=float)
    adjusted_D[order_D] = np.minimum(steps_D, 1)
    return adjusted_D


def verdict(above_reference: float, adjusted_p: float) -> str:
    """`gains` where a task's mean is significantly below the reference's, which is better, `loses` where above.

    `no evidence` otherwise.
    """
    if not adjusted_p < ALPHA:
        return UNKNOWN
    return GAINS if above_reference < 0 else LOSES
