"""IVON, the improved variational online Newton method (Shen et al. 2024, Algorithm 1), for the tasks; AdamW for Theta.

Shapes: K adapters (one per task), P parameters of one adapter.
"""

import torch
from torch import Tensor, nn

START_STEPS = 20  # the first gain is 0.1, so that single draws do not decide h


class Ivon(torch.optim.AdamW):
    """Mean-field q(delta_d) = N(mu_d, diag(sigma_d^2)) under the prior N(0, I/tau), Theta a point.

    With N scored tokens, p = tau / N and g the gradient per token at a draw mu + sigma eps, eps standard normal:

        h_hat = g (theta - mu) / sigma^2                      E h_hat is the diagonal of the expected Hessian
        h     <- h + gain (h_hat - h) + gain^2 / 2 (h - h_hat)^2 / (h + p)                stays above -p
        mu    <- mu - rate (m + p mu) / (h + p),                       m the bias-corrected mean of g, as Adam's
        sigma^2 = 1 / (N (h + p))

    The fixed point is the mean-field optimum: sigma^2 = 1 / (N h + tau). A step costs as much as AdamW's.

    The paper's gain is always 1 - beta2. Then h stays close to its initial value for 1 / (1 - beta2) steps, more than
    many fits take. Here the gain at step t is 2 / (START_STEPS + t), until that is smaller. So h is a mean of all h_hat
    with weights that grow as t (polynomial-decay averaging, Shamir & Zhang 2013), and the initial value and the first
    noisy steps are forgotten as 1 / t^2.

    Args:
        mean_P: Theta.
        task_KP: The deviations.
        lr: The learning rate of Theta.
        num_tokens: N.
        tau: Precision of the prior, one for all coordinates or tau_P for each.
        rate: The step of the means, in Newton steps.
        betas: Decay of m and h.
        first_hessian: The initial h.
        seed: Of the draws.
    """

    def __init__(
        self,
        mean_P: nn.Parameter,
        task_KP: nn.Parameter,
        lr: float,
        *,
        num_tokens: int,
        tau: float | Tensor,
        rate: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        first_hessian: float = 1e-3,
        seed: int = 0,
    ) -> None:
        groups = [{"params": [bank], "weight_decay": 0.0} for bank in (mean_P, task_KP) if bank.requires_grad]
        super().__init__(groups, lr=lr)
        self.bank, self.num_tokens, self.tau, self.rate, self.ivon_betas = task_KP, num_tokens, tau, rate, betas
        self.generator, self.seed = torch.Generator(task_KP.device), seed
        if mean_P.requires_grad:  # as AdamW would at its first step
            zeros = {name: torch.zeros_like(mean_P) for name in ("exp_avg", "exp_avg_sq")}
            self.state[mean_P] = {"step": torch.tensor(0.0), **zeros}
        self.state[task_KP] = {
            "step": torch.tensor(0.0),
            "gradient": torch.zeros_like(task_KP),
            "hessian": torch.full_like(task_KP, first_hessian),
            "mean": task_KP.detach().clone(),
        }

    def std_KP(self) -> Tensor:
        """sigma."""
        return (self.num_tokens * self.state[self.bank]["hessian"] + self.tau).rsqrt()

    @torch.no_grad()
    def perturb(self) -> None:
        """Move the bank from its mean to a draw of q, where the next gradient is to be taken."""
        mean_KP = self.state[self.bank]["mean"].copy_(self.bank)
        step = int(self.state[self.bank]["step"])
        self.generator.manual_seed(1_000_003 * self.seed + step)  # of the step alone: a resumed fit draws the same
        noise_KP = torch.empty_like(mean_KP).normal_(generator=self.generator)
        self.bank.copy_(mean_KP + self.std_KP() * noise_KP)

    @torch.no_grad()
    def step(self, closure=None):
        """One step from the gradient at the draw; the bank is left at its new mean."""
        state, (beta1, beta2), p = self.state[self.bank], self.ivon_betas, self.tau / self.num_tokens
        assert self.bank.grad is not None
        gradient, self.bank.grad = self.bank.grad, None  # AdamW passes over a bank without a gradient
        loss = super().step(closure)
        state["step"] += 1
        mean, hessian = state["mean"], state["hessian"]
        drawn = gradient * (self.bank - mean) * (self.num_tokens * (hessian + p))
        gain = max(1 - beta2, 2 / (START_STEPS + float(state["step"])))
        correction = 0.5 * gain**2 * (hessian - drawn).square() / (hessian + p)
        state["gradient"].lerp_(gradient, 1 - beta1)
        hessian.lerp_(drawn, gain).add_(correction)
        moment = state["gradient"] / (1 - beta1 ** float(state["step"]))
        self.bank.copy_(mean - self.rate * (moment + p * mean) / (hessian + p))
        return loss
