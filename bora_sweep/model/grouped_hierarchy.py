"""Three levels: tasks within groups, groups under Theta; noncentered coordinates at both levels.

Shapes: K adapters (one per task), G groups, P parameters of one adapter, B rows.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bora_sweep.model.hierarchy import GatherRows, Hierarchy, sum_by_task
from bora_sweep.model.prior import log_prior


class GroupedHierarchy(Hierarchy):
    """theta_d = Theta_g + delta_d and Theta_g = Theta + gamma_g, with `task_KP` delta_d and `group_GP` gamma_g.

    tau = inf: there are no deviations of tasks, and all tasks of a group share Theta_g. tau_2 = 0: Theta is not
    identified. It stays at its initial value, so that no information passes between groups.

    Args:
        initial_P: The initial value of Theta, of every group and of every task.
        group_K: The group of each task.
        num_groups: G.
        tau: Precision of the prior of tasks; more than 0.
        tau_2: Precision of the prior of groups; less than inf.
        holds_mean: Theta and Theta_g stay as they are: tasks are fitted under a prior that other tasks have decided.
        others: As for `Hierarchy`.
    """

    def __init__(
        self,
        initial_P: Tensor,
        *,
        group_K: Tensor,
        num_groups: int,
        tau: float,
        tau_2: float,
        holds_mean: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(initial_P, tau=tau, holds_mean=holds_mean, **others)
        assert not self.centered
        assert tau > 0
        self.tau_2, self.group_K = tau_2, group_K.to(initial_P.device)
        self.group_factor: float | None = None
        """While set, `theta_BP` has gamma_g times it; as `deviation_factor`, which is on delta_d, says of tasks."""
        if tau_2 == 0:
            self.mean_P.requires_grad_(False)
        gamma_GP = torch.zeros_like(initial_P).repeat(num_groups, 1)
        self.group_GP = nn.Parameter(gamma_GP, requires_grad=not holds_mean)

    def precisions(self) -> list[tuple[nn.Parameter, float | Tensor]]:
        """As for `Hierarchy`, with the groups."""
        of_tasks = super().precisions()
        return [*of_tasks, (self.group_GP, self.tau_2)] if self.group_GP.requires_grad else of_tasks

    def theta_BP(self, task_B: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The adapter of each row's task, theta_BP; arguments as for `Hierarchy`."""
        group_B, dtype = self.group_K[task_B], dtype or self.mean_P.dtype
        if self.task_KP is None:
            return GatherRows.apply(self.group_GP, self.mean_P, group_B, dtype)
        theta_BP = GatherRows.apply(self.group_GP, self.mean_P, group_B, self.mean_P.dtype)
        if self.group_factor is not None:
            theta_BP = self.mean_P + self.group_factor * (theta_BP - self.mean_P)
        delta_BP = GatherRows.apply(self.task_KP, None, task_B, self.mean_P.dtype)
        if self.deviation_factor is not None:
            delta_BP = self.deviation_factor * delta_BP
        return (theta_BP + delta_BP).to(dtype)

    def theta_GP(self) -> Tensor:
        """The adapters of the groups, detached."""
        return (self.mean_P + self.group_GP).detach()

    def theta_KP(self) -> Tensor:
        """The adapters of the tasks, detached."""
        of_group_KP = self.theta_GP()[self.group_K]
        return of_group_KP if self.task_KP is None else of_group_KP + self.task_KP.detach()

    def log_prior(self) -> Tensor:
        """`prior.log_prior` of tasks and groups in nats; 0 of a level without a prior or held; detached."""
        of_tasks = super().log_prior()
        if not self.group_GP.requires_grad:
            return of_tasks
        return of_tasks + log_prior(self.group_GP.detach(), 0.0, self.tau_2)

    @torch.no_grad()
    def add_prior_gradient_(self, num_tokens: int | Tensor) -> None:
        """Add the gradient of the prior of both levels to the gradients of the banks; as for `Hierarchy`."""
        super().add_prior_gradient_(num_tokens)
        if self.tau_2 > 0 and self.group_GP.requires_grad:
            assert self.group_GP.grad is not None
            self.group_GP.grad.add_(self.tau_2 / num_tokens * self.group_GP)

    @torch.no_grad()
    def set_adapters_(self, mean_P: Tensor, theta_KP: Tensor, theta_GP: Tensor | None = None) -> None:
        """Set Theta and the adapters of tasks and groups to these values.

        A Theta_g that is not given is set to its MAP given the rest: at tau = inf, where all tasks of a group are one,
        the mean of the group's adapters.
        """
        self.mean_P.copy_(mean_P)
        delta_KP = theta_KP - mean_P
        self.group_GP.copy_(self._map_GP(delta_KP) if theta_GP is None else theta_GP - mean_P)
        if self.task_KP is not None:
            self.task_KP.copy_(delta_KP - self.group_GP[self.group_K])

    def _map_GP(self, delta_KP: Tensor) -> Tensor:
        """The MAP of gamma_g given the tasks' theta_d - Theta."""
        num_groups, ratio = len(self.group_GP), self.tau_2 / self.tau  # 0 at tau = inf
        sum_GP = sum_by_task(delta_KP, self.group_K, num_groups, delta_KP.dtype)
        return sum_GP / (torch.bincount(self.group_K, minlength=num_groups)[:, None] + ratio)
