"""The optimiser of one fit: AdamW, or AdamW with the prior solved exactly in Adam's own metric."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class ProximalAdam(torch.optim.AdamW):
    """AdamW on the likelihood's gradient, then the exact minimiser of the prior in the metric of the same step.

    With m, v the bias-corrected moments and S = sqrt(v) + eps, a step solves

        argmin_delta  <m, delta> + 1/(2 lr) ||delta - delta_t||^2_S + p/2 ||delta||^2,

    that is delta <- (S delta - lr m) / (S + lr p): AdamW's step, shrunk by S / (S + lr p). Here p is a parameter
    group's `prior_precision`, tau / N for deviations from Theta. The fixed point, m + p delta = 0, is the MAP, and the
    step is a contraction at any p, however large.
    """

    def __init__(self, groups: Iterable[dict], lr: float) -> None:
        super().__init__(groups, lr=lr, weight_decay=0.0)

    @torch.no_grad()
    def step(self, closure=None):
        """One step; see the class."""
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if group["prior_precision"] and parameter.grad is not None:
                    metric = self._metric(group, parameter)
                    parameter.mul_(metric / (metric + group["lr"] * group["prior_precision"]))
        return loss

    def _metric(self, group: dict, parameter: Tensor) -> Tensor:
        """S = sqrt(v) + eps."""
        state = self.state[parameter]
        correction = 1 - group["betas"][1] ** float(state["step"])
        return (state["exp_avg_sq"] / correction).sqrt_().add_(group["eps"])


def make_optimizer(mean_P: nn.Parameter, task_KP: nn.Parameter | None, lr: float, prior_precision: float | None):
    """AdamW over Theta and the tasks' bank; proximal on the bank where `prior_precision` is given."""
    banks = [bank for bank in (mean_P, task_KP) if bank is not None and bank.requires_grad]
    if prior_precision is None:
        return torch.optim.AdamW(banks, lr=lr, weight_decay=0.0)
    groups = [{"params": [bank], "prior_precision": prior_precision if bank is task_KP else 0.0} for bank in banks]
    return ProximalAdam(groups, lr=lr)


def clip_rows_(gradient_KP: Tensor, max_norm: float) -> None:
    """Scale each row whose norm exceeds `max_norm` down to it, in place; rows do not see one another."""
    norm_K = torch.linalg.vector_norm(gradient_KP, dim=-1, keepdim=True)
    gradient_KP.mul_((max_norm / norm_K).clamp_(max=1.0))
