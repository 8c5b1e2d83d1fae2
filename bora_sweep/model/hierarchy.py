"""Theta and theta_1..K as parameters, in two coordinate systems of the same posterior.

Shapes: K adapters (one per task), P parameters of one adapter, B rows.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bora_sweep.config import GlobalUpdate, Parametrization
from bora_sweep.model.prior import log_prior

COLUMNS = 1 << 20
"""Coordinates whose sums by task are in memory beside the gradient that they are added to."""


def identity(tensor: Tensor) -> Tensor:
    """The default of `sum_over_tasks`: all tasks are in this process."""
    return tensor


class Hierarchy(nn.Module):
    """Theta and theta_1..K, each free to move if tau lets it.

    `noncentered`: `task_KP` is delta_d, and theta_d = Theta + delta_d; `centered`: `task_KP` is theta_d itself.
    tau = 0: Theta is not identified. It stays at its initial value, so that no information passes between tasks.
    tau = inf: there are no deviations, `task_KP` is None, and all tasks share Theta.

    Args:
        initial_P: The initial value of Theta and of every task.
        num_tasks: K.
        tau: Precision of the prior.
        parametrization: The coordinates.
        precision: tau_P of each coordinate or tau_K1 of each task, instead of one `tau` for all; 0 < tau < inf.
        global_update: How Theta moves, see `TrainConfig.global_update`.
        holds_mean: Theta stays at its initial value: tasks are fitted under a prior that other tasks have decided.
        num_local_tasks: The number of tasks in this process, if other processes have the rest; None: all K.
        sum_over_tasks: Turns a sum over this process's tasks into the sum over all tasks, in place.
    """

    mean_P: nn.Parameter
    task_KP: nn.Parameter | None

    def __init__(
        self,
        initial_P: Tensor,
        *,
        num_tasks: int,
        tau: float,
        parametrization: Parametrization,
        precision: Tensor | None = None,
        global_update: GlobalUpdate = "gradient",
        holds_mean: bool = False,
        num_local_tasks: int | None = None,
        sum_over_tasks: Callable[[Tensor], Tensor] = identity,
    ) -> None:
        super().__init__()
        self.num_tasks, self.tau, self.centered = num_tasks, tau, parametrization == "centered"
        self.precision = tau if precision is None else precision
        self.deviation_factor: float | Tensor | None = None
        """While set, `theta_BP` gives Theta + factor * (theta_d - Theta): what would a document's nats be, were the
        deviations smaller? One number, or one for each coordinate."""
        self.sum_over_tasks = sum_over_tasks
        # In centered coordinates the likelihood does not depend on Theta: the tasks' mean is its whole update.
        set_to_mean = global_update == "alternating" or (global_update == "mean" and self.centered)
        is_fixed = tau == 0 or holds_mean or (tau < math.inf and set_to_mean)
        self.mean_P = nn.Parameter(initial_P.clone(), requires_grad=not is_fixed)
        if math.isinf(tau):
            self.task_KP = None
        else:
            task_P = initial_P if self.centered else torch.zeros_like(initial_P)
            self.task_KP = nn.Parameter(task_P.repeat(num_tasks if num_local_tasks is None else num_local_tasks, 1))

    @property
    def is_tied(self) -> bool:
        """Whether there are deviations and a prior on them: 0 < tau < inf."""
        return self.task_KP is not None and self.tau > 0

    def precisions(self) -> list[tuple[nn.Parameter, float | Tensor]]:
        """The banks that move, each with the precision of the prior on its rows; 0 where there is none."""
        precision_of = [(self.mean_P, 0.0), (self.task_KP, self.precision if self.is_tied else 0.0)]
        return [(bank, precision) for bank, precision in precision_of if bank is not None and bank.requires_grad]

    def hold(self, task_B: np.ndarray) -> None:
        """Called before adapters of these tasks are read by `theta_BP`: all of them are here."""

    def theta_BP(self, task_B: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The adapter of each row's task, theta_BP; at tau = inf Theta alone, theta_1P.

        Args:
            task_B: Places in the bank.
            dtype: Of the result; None: that of the banks.
        """
        dtype = dtype or self.mean_P.dtype
        if self.task_KP is None:
            return self.mean_P.to(dtype)[None]
        return self._scaled(GatherRows.apply(self.task_KP, None if self.centered else self.mean_P, task_B, dtype))

    def _scaled(self, theta_BP: Tensor) -> Tensor:
        """`theta_BP` with deviations as `deviation_factor` says."""
        if self.deviation_factor is None:
            return theta_BP
        mean_P = self.mean_P.to(theta_BP.dtype)
        return mean_P + self.deviation_factor * (theta_BP - mean_P)

    def theta_KP(self) -> Tensor:
        """The adapters of this process's tasks, detached; at tau = inf Theta for each task, without a copy."""
        if self.task_KP is None:
            return self.mean_P.detach().expand(self.num_tasks, -1)
        return (self.task_KP if self.centered else self.mean_P + self.task_KP).detach()

    def delta_KP(self) -> Tensor:
        """theta_d - Theta of this process's tasks, what the prior pulls to 0, detached; tau < inf."""
        assert self.task_KP is not None
        return (self.task_KP - self.mean_P if self.centered else self.task_KP).detach()

    def log_prior(self) -> Tensor:
        """`prior.log_prior` of all tasks in nats; 0 at tau = 0 and inf; detached."""
        if not self.is_tied:
            return self.mean_P.detach().new_zeros(())
        return self.sum_over_tasks(self._log_density())

    def _log_density(self) -> Tensor:
        """The log density of this process's tasks under the prior."""
        return log_prior(self.delta_KP(), 0.0, self.precision)

    def _pull_KP(self, num_tokens: int | Tensor) -> Tensor:
        """The gradient of -`_log_density` / N in theta_1..K; N as in `add_prior_gradient_`."""
        return self.precision / num_tokens * self.delta_KP()

    @torch.no_grad()
    def add_prior_gradient_(self, num_tokens: int | Tensor) -> None:
        """Add the gradient of -log p(theta_1..K | Theta, tau) / N to the gradients of the banks.

        Args:
            num_tokens: N; of separate fits N_d of each task, shape (K, 1).
        """
        if self.task_KP is None or not self.is_tied:
            return
        pull_KP = self._pull_KP(num_tokens)
        _add_gradient(self.task_KP, pull_KP)
        if self.centered and self.mean_P.requires_grad:
            _add_gradient(self.mean_P, -self.sum_over_tasks(pull_KP.sum(0)))

    @torch.no_grad()
    def recenter_(self) -> None:
        """Set Theta to the mean of theta_1..K, its MAP given them; theta_1..K do not change."""
        if self.task_KP is not None and self.is_tied:
            shift_P = self.sum_over_tasks(self.delta_KP().sum(0)) / self.num_tasks
            self.mean_P.add_(shift_P)
            if not self.centered:
                self.task_KP.sub_(shift_P)

    @torch.no_grad()
    def set_adapters_(self, mean_P: Tensor, theta_KP: Tensor) -> None:
        """Set Theta and the adapters of this process's tasks to these values."""
        self.mean_P.copy_(mean_P)
        if self.task_KP is not None:
            self.task_KP.copy_(theta_KP if self.centered else theta_KP - mean_P)


class GatherRows(torch.autograd.Function):
    """(Theta + task_k) of each row's task k in the precision of the rows, with a gradient that is the same in each run.

    The gradient of torch's own gather adds rows on a GPU in any order, so that the same seed gives other bits. Here it
    is a product with the tasks' indicators, summed in the bank's precision. From the second pass of a step on it goes
    straight into the bank's gradient, which would otherwise be in memory twice.
    """

    @staticmethod
    def forward(ctx: Any, task_KP: nn.Parameter, mean_P: Tensor | None, task_B: Tensor, dtype: torch.dtype) -> Tensor:
        """theta_BP; `mean_P` is None where `task_KP` is theta itself."""
        ctx.save_for_backward(task_B)
        ctx.bank = task_KP
        if len(task_KP) <= len(task_B):  # the same numbers, over fewer rows
            theta_KP = task_KP if mean_P is None else task_KP + mean_P
            return theta_KP.to(dtype).index_select(0, task_B)
        theta_BP = task_KP.index_select(0, task_B)
        return (theta_BP if mean_P is None else theta_BP.add_(mean_P)).to(dtype)

    @staticmethod
    def backward(ctx: Any, grad_BP: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """The gradients of the bank and of Theta; that of the bank is None where it has been added."""
        (task_B,), bank = ctx.saved_tensors, ctx.bank
        of_mean_P = grad_BP.sum(0, dtype=bank.dtype) if ctx.needs_input_grad[1] else None
        if bank.grad is None:
            return sum_by_task(grad_BP, task_B, len(bank), bank.dtype), of_mean_P, None, None
        add_by_task_(bank.grad, grad_BP, task_B)
        return None, of_mean_P, None, None


def sum_by_task(rows_BP: Tensor, task_B: Tensor, num_tasks: int, dtype: torch.dtype) -> Tensor:
    """The sum of each task's rows, shape (K, P), in an order that does not change from run to run.

    Args:
        rows_BP: The rows.
        task_B: Each row's task.
        num_tasks: K.
        dtype: Of the sums.
    """
    if rows_BP.device.type == "cpu":  # one row after another
        return rows_BP.new_zeros(num_tasks, rows_BP.shape[1], dtype=dtype).index_add_(0, task_B, rows_BP.to(dtype))
    indicator_KB = (torch.arange(num_tasks, device=task_B.device)[:, None] == task_B).to(rows_BP.dtype)
    if rows_BP.device.type == "cuda" and rows_BP.dtype != dtype:
        return torch.mm(indicator_KB, rows_BP, out_dtype=dtype)
    return indicator_KB.to(dtype) @ rows_BP.to(dtype)


def add_by_task_(total_KP: Tensor, rows_BP: Tensor, task_B: Tensor) -> None:
    """Add the rows to those of their tasks, in place, by `COLUMNS` at a time; arguments as in `sum_by_task`."""
    for total_KC, rows_BC in zip(total_KP.split(COLUMNS, dim=1), rows_BP.split(COLUMNS, dim=1), strict=True):
        if rows_BP.device.type == "cpu":
            total_KC.index_add_(0, task_B, rows_BC.to(total_KP.dtype))
        else:
            total_KC.add_(sum_by_task(rows_BC, task_B, len(total_KP), total_KP.dtype))


def _add_gradient(bank: nn.Parameter, gradient: Tensor) -> None:
    bank.grad = gradient if bank.grad is None else bank.grad.add_(gradient)
