"""One adapter out of many, without training: the mean, TIES and DARE, by PEFT's own merging functions.

Shapes: K adapters, P parameters of one adapter.
"""

from collections.abc import Callable

import torch
from peft.utils.merge_utils import dare_linear, task_arithmetic, ties
from torch import Tensor

from bora_sweep.model.layout import Layout

DENSITY = 0.5  # share of each matrix that TIES and DARE keep

# Of K equal adapters all three give that adapter back (DARE in expectation): it is what `add_weighted_adapter` does
# with weights of 1/K^2, 1 and 1/K^2, of which it takes the root for each matrix.
MERGES: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "average": lambda matrices: task_arithmetic(matrices, _equal(matrices, 1 / len(matrices))),
    "ties": lambda matrices: ties(matrices, _equal(matrices, 1.0), DENSITY),
    "dare": lambda matrices: dare_linear(matrices, _equal(matrices, 1 / len(matrices)), DENSITY),
}


def merge(theta_KP: Tensor, layout: Layout, method: str, seed: int) -> Tensor:
    """theta_P, one adapter for all tasks, matrix by matrix.

    Args:
        theta_KP: The tasks' adapters, fitted independently.
        layout: Where each matrix lies in theta_P.
        method: `average`; `ties` (Yadav et al. 2023): each adapter trimmed to its largest half, then the mean of those
            that share the majority's sign; `dare` (Yu et al. 2024): a random half of each dropped and the rest doubled,
            then the mean.
        seed: Fixes what DARE drops.
    """
    merged_P = torch.empty_like(theta_KP[0])
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        for target, bank in zip(_matrices(layout, merged_P), _matrices(layout, theta_KP), strict=True):
            target.copy_(MERGES[method](list(bank)))
    return merged_P


def _matrices(layout: Layout, theta_P: Tensor) -> list[Tensor]:
    return [matrix for parts in layout.split(theta_P).values() for matrix in parts.values()]


def _equal(matrices: list[Tensor], weight: float) -> Tensor:
    return torch.full((len(matrices),), weight, dtype=matrices[0].dtype)
