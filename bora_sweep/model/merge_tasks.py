"""Merges many adapters into one without training: the mean, TIES and DARE, by PEFT's own functions.

Shapes: K adapters, P parameters of one adapter.
"""

from collections.abc import Callable

import torch
from peft.utils.merge_utils import dare_linear, task_arithmetic, ties
from torch import Tensor

from bora_sweep.model.layout import Layout

DENSITY = 0.5  # the fraction of each matrix that TIES and DARE keep

# All three return the adapter when all K are equal (DARE in expectation). PEFT's `add_weighted_adapter` does the same
# with weights of 1/K^2, 1 and 1/K^2, because it takes their root for each matrix.
MERGE_OF: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "average": lambda matrices: task_arithmetic(matrices, _equal_weights(matrices, 1 / len(matrices))),
    "ties": lambda matrices: ties(matrices, _equal_weights(matrices, 1.0), DENSITY),
    "dare": lambda matrices: dare_linear(matrices, _equal_weights(matrices, 1 / len(matrices)), DENSITY),
}


def merge(theta_KP: Tensor, layout: Layout, method: str, seed: int) -> Tensor:
    """One adapter for all tasks, merged matrix by matrix.

    Args:
        theta_KP: The tasks' adapters, fitted independently.
        layout: Where each matrix lies in theta_P.
        method: `average`. `ties` (Yadav et al. 2023): trim each adapter to its largest half, then average the values
            that have the majority's sign. `dare` (Yu et al. 2024): drop a random half of each adapter, double the rest,
            then average.
        seed: Fixes what DARE drops.

    Returns:
        theta_P.
    """
    merged_P = torch.empty_like(theta_KP[0])
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        for target, bank in zip(_matrices(layout, merged_P), _matrices(layout, theta_KP), strict=True):
            target.copy_(MERGE_OF[method](list(bank)))
    return merged_P


def _matrices(layout: Layout, theta_P: Tensor) -> list[Tensor]:
    """Views of each matrix of an adapter, or of each stack of matrices of a bank."""
    return [matrix for parts in layout.split(theta_P).values() for matrix in parts.values()]


def _equal_weights(matrices: list[Tensor], weight: float) -> Tensor:
    return torch.full((len(matrices),), weight, dtype=matrices[0].dtype)
