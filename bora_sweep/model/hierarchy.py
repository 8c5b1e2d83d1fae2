"""Theta and theta_1..K as parameters, in two coordinate systems of the same posterior.

Shapes: K adapters (one per task), P parameters of one adapter, B rows.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bora_sweep.config import GlobalUpdate, Parametrization
from bora_sweep.model.prior import log_prior, tensor_norm_gradient, tensor_norms


def identity(over_tasks: Tensor) -> Tensor:
    """A sum over all tasks, where all are held here."""
    return over_tasks


class Hierarchy(nn.Module):
    """Theta and theta_1..K, free to move where tau lets them.

    `noncentered`: `task_KP` holds delta_d and theta_d = Theta + delta_d; `centered`: `task_KP` holds theta_d itself.
    tau = 0: Theta is not identified and stays at its initial value, so that nothing passes between tasks.
    tau = inf: there are no deviations to hold, `task_KP` is None and every row shares Theta.

    Args:
        initial_P: Where Theta and every task begin.
        num_tasks: K.
        tau: Precision of the prior.
        parametrization: The coordinates.
        tau_P: The precision of each coordinate, where it is not `tau` for all; 0 < tau < inf.
        global_update: How Theta moves, see `TrainConfig.global_update`.
        num_held: The tasks whose rows are held here, where others are held elsewhere; None: all K.
        total: Makes the sum over all tasks, in place, of one over those that are held here.
        norms_of: Sizes of the tensors whose distances to Theta's are penalised as they are, see
            `PriorConfig.penalty`; None: the squared distance, Eq. 5.
    """

    mean_P: nn.Parameter
    task_KP: nn.Parameter | None

    def __init__(
        self,
        initial_P: Tensor,
        num_tasks: int,
        tau: float,
        parametrization: Parametrization,
        tau_P: Tensor | None = None,
        global_update: GlobalUpdate = "gradient",
        num_held: int | None = None,
        total: Callable[[Tensor], Tensor] = identity,
        norms_of: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.total, self.norms_of = total, norms_of
        self.num_tasks, self.tau, self.centered = num_tasks, tau, parametrization == "centered"
        self.precision = tau if tau_P is None else tau_P
        held = tau == 0 or (tau < math.inf and (global_update == "alternating" or self._mean_solves(global_update)))
        self.mean_P = nn.Parameter(initial_P.clone(), requires_grad=not held)
        if math.isinf(tau):
            self.task_KP = None
        else:
            start_P = initial_P if self.centered else torch.zeros_like(initial_P)
            self.task_KP = nn.Parameter(start_P.repeat(num_tasks if num_held is None else num_held, 1))

    def _mean_solves(self, global_update: GlobalUpdate) -> bool:
        """In centered coordinates the likelihood does not see Theta: its mean is all there is to its update."""
        return global_update == "mean" and self.centered

    @property
    def is_tied(self) -> bool:
        """0 < tau < inf: there are deviations, and a prior acts on them."""
        return self.task_KP is not None and self.tau > 0

    def rows(self, task_B: Tensor) -> Tensor:
        """theta of each row's task, its place in the bank, theta_BP; Theta alone, theta_1P, at tau = inf."""
        if self.task_KP is None:
            return self.mean_P[None]
        task_BP = self.task_KP.index_select(0, task_B)
        return task_BP if self.centered else task_BP.add_(self.mean_P)  # in the memory that it was gathered to

    def theta_KP(self) -> Tensor:
        """theta_1..K that are held here, detached; at tau = inf Theta for each task, without a copy."""
        if self.task_KP is None:
            return self.mean_P.detach().expand(self.num_tasks, -1)
        return (self.task_KP if self.centered else self.mean_P + self.task_KP).detach()

    def delta_KP(self) -> Tensor:
        """theta_d - Theta, detached; for a hierarchy that has deviations."""
        assert self.task_KP is not None
        return (self.task_KP - self.mean_P if self.centered else self.task_KP).detach()

    def log_prior(self) -> Tensor:
        """log p(theta_1..K | Theta, tau) as in `log_prior`, detached; 0 at both ends, where no prior acts."""
        if not self.is_tied:
            return self.mean_P.detach().new_zeros(())
        if self.norms_of is not None:
            return self.total(-self.tau * tensor_norms(self.delta_KP(), 0.0, self.norms_of).sum())
        return self.total(log_prior(self.delta_KP(), 0.0, self.precision))

    @torch.no_grad()
    def add_prior_gradient_(self, num_tokens: int) -> None:
        """Add the gradient of -log p(theta_1..K | Theta, tau) / N to that of the banks."""
        if self.task_KP is None or not self.is_tied:
            return
        if self.norms_of is None:
            pull_KP = self.precision / num_tokens * self.delta_KP()
        else:
            pull_KP = tensor_norm_gradient(self.delta_KP(), self.tau / num_tokens, self.norms_of)
        _accumulate(self.task_KP, pull_KP)
        if self.centered and self.mean_P.requires_grad:
            _accumulate(self.mean_P, -self.total(pull_KP.sum(0)))

    @torch.no_grad()
    def recenter_(self) -> None:
        """Theta at the mean of theta_1..K, its MAP given them; the tasks stay where they are."""
        if self.task_KP is not None and self.is_tied:
            shift_P = self.total(self.delta_KP().sum(0)) / self.num_tasks
            self.mean_P.add_(shift_P)
            if not self.centered:
                self.task_KP.sub_(shift_P)

    @torch.no_grad()
    def start_from_(self, mean_P: Tensor, theta_KP: Tensor) -> None:
        """Put Theta and the tasks where another fit left them."""
        self.mean_P.copy_(mean_P)
        if self.task_KP is not None:
            self.task_KP.copy_(theta_KP if self.centered else theta_KP - mean_P)


def _accumulate(bank: nn.Parameter, gradient: Tensor) -> None:
    bank.grad = gradient if bank.grad is None else bank.grad.add_(gradient)
