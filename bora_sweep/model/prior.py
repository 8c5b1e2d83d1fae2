"""The hierarchical prior, Eq. 5, on whole banks, and the two coordinate systems of the same posterior.

Shapes: K adapters (one per task), P parameters of one adapter, B rows.
"""

import math

import torch
from torch import Tensor, nn

from bora_sweep.config import Parametrization


def log_prior(theta_KP: Tensor, mean_P: Tensor | float, tau: float) -> Tensor:
    """sum_k log N(theta_k; Theta, I/tau), Eq. 5, in nats, without the constant K P/2 log(tau / 2 pi).

    At tau = 0 the prior is flat: 0 everywhere.
    """
    return -0.5 * tau * (theta_KP - mean_P).square().sum()


def distance_to_global(theta_KP: Tensor, mean_P: Tensor) -> Tensor:
    """||theta_k - Theta||_2 for each task, the ordinate of the paper's Figure 4; shape K."""
    return torch.linalg.vector_norm(theta_KP - mean_P, dim=-1)


class Hierarchy(nn.Module):
    """Theta and theta_1..K, free to move where tau lets them.

    `noncentered`: `task_KP` holds delta_d and theta_d = Theta + delta_d; `centered`: `task_KP` holds theta_d itself.
    tau = 0: Theta is not identified and stays at its initial value, so that nothing passes between tasks.
    tau = inf: there are no deviations to hold, `task_KP` is None and every row shares Theta.
    """

    mean_P: nn.Parameter
    task_KP: nn.Parameter | None

    def __init__(self, initial_P: Tensor, num_tasks: int, tau: float, parametrization: Parametrization) -> None:
        super().__init__()
        self.num_tasks, self.tau, self.centered = num_tasks, tau, parametrization == "centered"
        self.mean_P = nn.Parameter(initial_P.clone(), requires_grad=tau > 0)
        if math.isinf(tau):
            self.task_KP = None
        else:
            start_P = initial_P if self.centered else torch.zeros_like(initial_P)
            self.task_KP = nn.Parameter(start_P.repeat(num_tasks, 1))

    def rows(self, task_B: Tensor) -> Tensor:
        """theta of each row's task, theta_BP; Theta alone, theta_1P, at tau = inf."""
        if self.task_KP is None:
            return self.mean_P[None]
        task_BP = self.task_KP.index_select(0, task_B)
        return task_BP if self.centered else self.mean_P + task_BP

    def theta_KP(self) -> Tensor:
        """theta_1..K, detached; at tau = inf Theta for each task, without a copy."""
        if self.task_KP is None:
            return self.mean_P.detach().expand(self.num_tasks, -1)
        return (self.task_KP if self.centered else self.mean_P + self.task_KP).detach()

    def log_prior(self) -> Tensor:
        """log p(theta_1..K | Theta, tau) as in `log_prior`; 0 at both ends, where no prior acts."""
        if self.task_KP is None or self.tau == 0:
            return self.mean_P.new_zeros(())
        return log_prior(self.task_KP, self.mean_P if self.centered else 0.0, self.tau)
