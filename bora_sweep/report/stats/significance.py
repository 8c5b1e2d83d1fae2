"""Which tasks gain and which lose, by tests over their documents, corrected for how many tasks are looked at.

D tasks, n documents of one task, F draws of signs.

A task's p-value is the larger of two. The sign-flip test is exact whatever the documents' lengths and spreads, if
differences are as likely above 0 as below: under no difference each could have come with the other sign. It cannot be
fooled by few documents: with n of them it never falls below 2^(1 - n). The t test of the interval (`Contrast.p_value`)
knows of unlike lengths and, where several seeds were fitted, of how fits vary; so a verdict never contradicts the
interval beside it.
"""

from functools import cache

import numpy as np

from bora_sweep.report.stats.bootstrap import Contrast
from bora_sweep.report.stats.documents import Documents

ALPHA = 0.05
FLIPS = 10_000
_ENUMERATED = 12  # documents up to which all 2^(n - 1) signs are tried
_BLOCK = 512  # documents whose signs are held at once
GAINS, LOSES, UNKNOWN = "gains", "loses", "no evidence"


def task_p_values(documents: Documents, differences: Contrast, column: int, setting: int, reference: int) -> np.ndarray:
    """p_D of no difference between a setting and a reference, tasks in the order of `documents.tasks`.

    Args:
        documents: From `align_documents`.
        differences: Of `task_contrasts`.
        column: Of `differences`, the one of this setting and reference.
        setting: The one judged.
        reference: What it is compared with.
    """
    nats_N = documents.nats_NM[:, setting] - documents.nats_NM[:, reference]
    flipped_D = np.array([sign_flip_p(nats_n) for nats_n in np.split(nats_N, documents.starts_D[1:])])
    return np.maximum(differences.p_value[:, column], flipped_D)


def sign_flip_p(nats_n: np.ndarray) -> float:
    """Share of the signs under which the sum of paired differences is as far from 0 as the one observed.

    All signs for a dozen documents or fewer, else `FLIPS` drawn ones. What these cannot resolve is bounded: the sum of
    signed a_n exceeds z sqrt(sum a_n^2) with probability at most exp(-z^2 / 2) (Hoeffding 1963).
    """
    total, n = abs(nats_n.sum()), len(nats_n)
    as_far = total * (1 - 1e-9)
    if n <= _ENUMERATED:
        return float((np.abs(_all_signs(n) @ nats_n) >= as_far).mean())
    blocks = range(0, n, _BLOCK)
    sums_F = sum(_drawn_signs(block // _BLOCK)[:, : n - block] @ nats_n[block : block + _BLOCK] for block in blocks)
    drawn = (1 + (np.abs(sums_F) >= as_far).sum()) / (1 + FLIPS)
    square = (nats_n**2).sum()
    bound = 2 * np.exp(-(total**2) / (2 * square)) if square else 1.0
    return float(min(drawn, bound))


@cache
def _all_signs(n: int) -> np.ndarray:
    """Each choice of signs whose first is +: the opposite ones have the same distance from 0."""
    bits = np.arange(2 ** max(n - 1, 0))[:, None] >> np.arange(n - 1) & 1
    return np.column_stack([np.ones(len(bits)), 1.0 - 2 * bits])


@cache
def _drawn_signs(block: int) -> np.ndarray:
    return np.random.default_rng(block).choice(np.array([-1, 1], np.int8), (FLIPS, _BLOCK)).astype(np.float32)


def smallest_p(num_documents: float) -> float:
    """Below this a task of so many documents cannot come, whatever they say."""
    return 2.0 ** (1 - num_documents)


def holm(p_D: np.ndarray) -> np.ndarray:
    """p-values adjusted for their number, so that those below alpha hold one false one or more with probability alpha.

    Holm (1979): the i-th smallest times (D - i + 1), none below the one before it.
    """
    order_D = np.argsort(p_D, kind="stable")
    steps_D = np.maximum.accumulate(p_D[order_D] * np.arange(len(p_D), 0, -1))
    adjusted_D = np.empty_like(p_D, dtype=float)
    adjusted_D[order_D] = np.minimum(steps_D, 1)
    return adjusted_D


def verdict(nats_above_reference: float, adjusted_p: float) -> str:
    """In words; fewer nats than the reference is a gain."""
    if not adjusted_p < ALPHA:
        return UNKNOWN
    return GAINS if nats_above_reference < 0 else LOSES
