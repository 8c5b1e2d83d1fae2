"""`train.update=present`: a step moves the tasks of its batch, and costs what they cost, not D.

Shapes: K tasks of this process, U of them held, P parameters of one adapter, B rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bora_sweep.model.hierarchy import GatherRows, Hierarchy
from bora_sweep.model.prior import log_prior
from bora_sweep.train.row_bank import DELTA, RowBank, Rows


class PresentHierarchy(Hierarchy):
    """A hierarchy whose `task_KP` has the rows of the tasks that are held, (U, P); all others are in a `RowBank`.

    Args:
        initial_P: The initial value of Theta and of every task.
        bank: The tasks' deviations.
        arguments: All others of `Hierarchy`; noncentered, tau < inf.
    """

    def __init__(self, initial_P: Tensor, *, bank: RowBank, **arguments: Any) -> None:
        super().__init__(initial_P, **{**arguments, "num_local_tasks": 0})
        assert self.task_KP is not None
        assert not self.centered
        self.bank = bank
        self.row_K = torch.full((bank.num_tasks,), -1, device=initial_P.device)
        """Each task's row of `task_KP`; -1, which no gather accepts, where it is not held."""
        self._shown: Rows | None = None

    def hold(self, task_B: np.ndarray) -> None:
        """Hold the rows of these tasks, to read them."""
        self.bank.hold(task_B)
        self._show_held()

    def hold_for_step(self, task_B: np.ndarray, following_B: np.ndarray | None) -> tuple[np.ndarray, dict[str, Tensor]]:
        """Hold the rows of these tasks alone.

        Args:
            task_B: The tasks of a step on this process.
            following_B: Those of the next one, if it is known.

        Returns:
            The tasks in the order of the rows; Adam's moments and counts of steps, which move in place.
        """
        rows = self.bank.hold_for_step(task_B, following_B)
        self._show_held()
        return rows.task_U, {name: bank for name, bank in rows.banks.items() if name != DELTA}

    def _show_held(self) -> None:
        """Make `task_KP` the rows that the bank holds for this process."""
        held = self.bank.held
        if held is None or held is self._shown:
            return
        # A new parameter: autograd may remember the shape of the old one.
        self._shown, self.task_KP = held, nn.Parameter(held.banks[DELTA])
        task_U = torch.from_numpy(held.task_U).to(self.row_K.device, non_blocking=True)
        self.row_K.fill_(-1)[task_U] = torch.arange(len(task_U), device=self.row_K.device)

    def theta_BP(self, task_B: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The adapter of each row's task, which must be held."""
        rows = self.task_KP, self.mean_P, self.row_K[task_B], dtype or self.mean_P.dtype
        return self._scaled(GatherRows.apply(*rows))

    def theta_KP(self) -> Tensor:
        """The adapters of this process's tasks, where the bank is."""
        mean_P = self.mean_P.detach().to(self.bank.banks[DELTA].device)
        return torch.cat([delta + mean_P for _, delta in self.bank.blocks()])

    def set_adapters_(self, mean_P: Tensor, theta_KP: Tensor) -> None:
        """Set Theta and the adapters of this process's tasks to these values."""
        with torch.no_grad():
            self.mean_P.copy_(mean_P)
        self.bank.set(DELTA, theta_KP - mean_P)

    def _log_density(self) -> Tensor:
        parts = [log_prior(delta.to(self.mean_P.device), 0.0, self.precision) for _, delta in self.bank.blocks()]
        return torch.stack(parts).sum()


class PresentTasks:
    """What the optimiser is given before each step: the rows of its tasks, and the pace of each.

    Let an epoch have M batches, and task d be in n_d of them. A step of the task then stands for M / n_d steps of
    `train.update=all`, all but one of which bring it no gradient: that is its pace (`ProximalAdam`). In an epoch the
    prior pulls as hard, moments decay as much and the task goes as far as there. Likelihood and prior balance at the
    same point, the MAP, and one learning rate serves both.

    Args:
        hierarchy: Theta and the tasks.
        optimizer: Of its parameters.
    """

    def __init__(self, hierarchy: PresentHierarchy, optimizer: torch.optim.Optimizer) -> None:
        self.hierarchy, self.state = hierarchy, optimizer.state
        (self.group,) = (group for group in optimizer.param_groups if group["params"][0] is hierarchy.task_KP)
        self.precision = self.group["prior_precision"]
        self.pace_K = np.ones(hierarchy.bank.num_tasks)

    def begin_epoch(self, batches: Sequence[np.ndarray]) -> None:
        """Count how often each task is in a batch.

        Args:
            batches: The tasks of each batch.
        """
        present = np.concatenate([np.unique(task_B) for task_B in batches])
        self.pace_K = len(batches) / np.maximum(1, np.bincount(present, minlength=len(self.pace_K)))

    def begin_step(self, task_B: np.ndarray, following_B: np.ndarray | None) -> None:
        """Hold the rows of these tasks, for the optimiser to move.

        Args:
            task_B: The tasks of the step on this process.
            following_B: Those of the next one, if it is known.
        """
        self.state.pop(self.group["params"][0], None)
        task_U, moments = self.hierarchy.hold_for_step(task_B, following_B)
        assert self.hierarchy.task_KP is not None
        self.group["params"], self.state[self.hierarchy.task_KP] = [self.hierarchy.task_KP], moments
        self.group["pace"] = torch.from_numpy(self.pace_K[task_U, None]).to(self.hierarchy.mean_P)
        if isinstance(self.precision, Tensor) and self.precision.dim() == 2:
            self.group["prior_precision"] = self.precision[task_U]
