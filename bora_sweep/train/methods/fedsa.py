"""`method=fedsa`: A shared by all tasks and a B for each (FedSA-LoRA, Guo et al. 2025, arXiv 2410.01463).

There A is averaged over the tasks after some steps of each, and B stays where it is. Here it is one joint fit: A moves
in each step by the sum of the tasks' gradients, as after one step of each, and a task's B by its own. There is no
prior.

Shapes: K adapters (one per task), P parameters of one adapter.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bora_sweep.model.hierarchy import Hierarchy
from bora_sweep.train.trainer import Trainer


class SharedPartsHierarchy(Hierarchy):
    """Adapters that agree in some coordinates, and are free in the others.

    The shared coordinates are Theta's; of the deviations there are only the others. Theta stays at its initial value
    there, so that nothing passes between tasks but by what they share.

    Args:
        initial_P: As for `Hierarchy`.
        is_shared_P: Whether each coordinate is shared.
        arguments: All others of `Hierarchy`; there is no prior, so tau and the coordinates are those used here.
    """

    def __init__(self, initial_P: Tensor, *, is_shared_P: Tensor, **arguments: Any) -> None:
        super().__init__(initial_P, **arguments | {"tau": 0.0, "precision": None, "parametrization": "noncentered"})
        self.mean_P.requires_grad_(True)
        self.is_shared_P = is_shared_P.to(initial_P.device)

    @torch.no_grad()
    def keep_own_gradients_(self) -> None:
        """Set to 0 the gradients of Theta and of the deviations where these do not move."""
        assert self.task_KP is not None
        for bank, moves_P in ((self.mean_P, self.is_shared_P), (self.task_KP, ~self.is_shared_P)):
            if bank.grad is not None:
                bank.grad.mul_(moves_P)


class FedsaTrainer(Trainer):
    """A joint fit of one A and each task's B. Its epoch is chosen by the validation documents of all tasks."""

    hierarchy: SharedPartsHierarchy

    def hierarchy_class(self) -> Callable[..., Hierarchy]:
        """What shares A."""
        names, index_P = self.pack.layout.parameter_groups("matrix")
        return partial(SharedPartsHierarchy, is_shared_P=index_P == names.index("A"))

    def descend(self, nll_nats: float) -> None:
        """One optimiser step, in which each coordinate moves once: of A Theta's, of B the tasks'."""
        self.hierarchy.keep_own_gradients_()
        super().descend(nll_nats)
