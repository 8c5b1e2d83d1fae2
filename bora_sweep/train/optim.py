"""The step of a fit: Adam on the likelihood, and the prior either in the gradient or solved exactly in Adam's metric.

Shapes: K adapters (one per task), P parameters of one adapter.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from transformers import get_scheduler

from bora_sweep.config import Config, GlobalUpdate, Solver
from bora_sweep.data.batches import ADD_STEPS, num_training_batches
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.kernels import has_kernels_for
from bora_sweep.model.hierarchy import Hierarchy
from bora_sweep.model.layout import Layout

BLOCK = {"cpu": 1 << 17}
"""Numbers of a bank that a step takes at a time, so that on a CPU they stay in the cache."""
BLOCK_ELSEWHERE = 1 << 26
"""On a GPU enough to fill it, and few enough that temporaries are small beside the bank."""
COPIES_ELSEWHERE = 3
"""Temporary copies of such a block that a step of `ProximalAdam` holds on a GPU, for `bora_sweep.train.memory`."""


class ProximalAdam(torch.optim.Optimizer):
    """Adam on the likelihood's gradient, then the exact minimiser of the prior in the metric of the same step.

    With m, v the bias-corrected moments and S = sqrt(v) + eps, a step solves

        argmin_delta  <m, delta> + 1/(2 lr) ||delta - delta_t||^2_S + p/2 ||delta||^2,

    that is delta <- (S delta - lr m) / (S + lr p): Adam's step, shrunk by S / (S + lr p). A parameter group's
    `prior_precision` is p: tau / N for deviations from Theta. The fixed
    point, m + p delta = 0, is the MAP, and the step is a contraction at any p, however large. With p = 0 it is Adam
    (Kingma & Ba 2015). `rate` multiplies lr. Both are one number, one for each coordinate (P), one for each row of the
    bank (K, 1), or one for each of its numbers (K, P).

    `pace`, one number or one for each row (K, 1), is how many steps the present one stands for, if the others bring no
    gradient (`bora_sweep.train.present`). Moments then decay as in so many steps, the count of steps grows by as many,
    the prior pulls as often, and the rate is sqrt(pace) times as high: zeros among the gradients would lower the root
    of their mean square so much.
    """

    def __init__(
        self, groups: Iterable[dict], lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        super().__init__(
            groups, {"lr": lr, "betas": betas, "eps": eps, "prior_precision": 0.0, "rate": 1.0, "pace": 1.0}
        )
        for bank in (bank for group in self.param_groups for bank in group["params"]):
            self.state[bank] = self._first_state(bank)

    def _first_state(self, bank: Tensor) -> dict[str, Tensor]:
        """Made before the first forward pass, so that the passes are as large as the memory beside it allows."""
        return {"step": torch.zeros(()), "exp_avg": torch.zeros_like(bank), "exp_avg_sq": torch.zeros_like(bank)}

    @torch.no_grad()
    def step(self, closure=None) -> None:  # type: ignore[override]  # noqa: ARG002, a closure is not taken
        """One step; see the class."""
        for group in self.param_groups:
            for bank in group["params"]:
                if bank.grad is not None:
                    self._step(bank, bank.grad, group)

    def _step(self, bank: Tensor, gradient: Tensor, group: dict) -> None:
        state = self.state[bank]
        state["step"] += group["pace"]
        by_row = any(_is_by_row(group[name]) for name in ("pace", "rate", "prior_precision"))
        if by_row or not has_kernels_for(bank):
            self._step_in_blocks(bank, gradient, group)
            return
        from bora_sweep.kernels.adam import proximal_adam_

        proximal_adam_(
            bank,
            gradient,
            state["exp_avg"],
            state["exp_avg_sq"],
            step=state["step"].item(),
            lr=group["lr"],
            rate=group["rate"],
            betas=group["betas"],
            eps=group["eps"],
            precision=group["prior_precision"],
        )

    def _step_in_blocks(self, bank: Tensor, gradient: Tensor, group: dict) -> None:
        """The step by operations of torch."""
        state, pace = self.state[bank], group["pace"]
        step = state["step"] if _is_by_row(pace) else state["step"].item()
        betas, corrections = [beta**pace for beta in group["betas"]], [1 - beta**step for beta in group["betas"]]
        rate, precision = group["rate"] * pace**0.5, group["prior_precision"] * pace
        block = BLOCK.get(bank.device.type, BLOCK_ELSEWHERE)
        rows = max(1, block // bank.shape[-1]) if bank.dim() > 1 else len(bank)
        tensors = bank, gradient, state["exp_avg"], state["exp_avg_sq"]
        for start in range(0, len(bank), rows):
            part = slice(start, start + rows)
            theta, g, moment, square = (tensor[part] for tensor in tensors)
            factor, p, beta1, beta2, first, second = (
                value[part] if _is_by_row(value) else value for value in (rate, precision, *betas, *corrections)
            )
            moment.lerp_(g, 1 - beta1)
            if _is_by_row(beta2):
                square.mul_(beta2).addcmul_(g, (1 - beta2) * g)
            else:
                square.mul_(beta2).addcmul_(g, g, value=1 - beta2)
            metric = (square / second).sqrt_().add_(group["eps"])  # S
            lr = group["lr"] * factor
            theta.sub_(lr / first * moment / metric)
            if _any(p):
                theta.mul_(metric / (metric + lr * p))


def _any(value: float | Tensor) -> bool:
    return isinstance(value, Tensor) or value != 0


def _is_by_row(value: float | Tensor) -> bool:
    return isinstance(value, Tensor) and value.dim() == 2


def make_optimizer(
    hierarchy: Hierarchy,
    lr: float,
    solver: Solver,
    num_tokens: int | Tensor,
    *,
    rate: float | Tensor = 1.0,
    kind: type[ProximalAdam] = ProximalAdam,
) -> ProximalAdam:
    """An optimiser of the banks that move. With the solver `proximal` the prior acts in its step on the deviations.

    Args:
        hierarchy: Theta and the tasks.
        lr: The learning rate.
        solver: Where the prior acts.
        num_tokens: N, by which the objective is divided; of separate fits N_d of each task, or that of its group,
            shape (K, 1).
        rate: A factor on the learning rate, one or rate_P.
        kind: The optimiser's class.
    """
    groups = [
        {
            "params": [bank],
            "prior_precision": precision / num_tokens if solver == "proximal" and _any(precision) else 0.0,
            "rate": rate,
        }
        for bank, precision in hierarchy.precisions()
    ]
    return kind(groups, lr=lr)


def map_step(
    hierarchy: Hierarchy,
    optimizer: torch.optim.Optimizer,
    solver: Solver,
    num_tokens: int | Tensor,
    *,
    max_norm: float | None = None,
    global_update: GlobalUpdate = "gradient",
) -> None:
    """One step on the MAP objective from the likelihood's gradient per scored token in the banks; clears the gradients.

    Args:
        hierarchy: Theta and the tasks.
        optimizer: From `make_optimizer`, as it is or wrapped by Accelerate.
        solver: As given to `make_optimizer`.
        num_tokens: As given to `make_optimizer`.
        max_norm: Bound on the norm of each task's gradient, of each group's, and of Theta's.
        global_update: With `mean`, Theta is put at the tasks' mean after the step.
    """
    if solver == "adamw":
        hierarchy.add_prior_gradient_(num_tokens)
    if max_norm is not None:
        for bank in hierarchy.parameters():
            if bank.grad is not None:
                clip_rows_(bank.grad, max_norm)
    optimizer.step()
    optimizer.zero_grad()
    if global_update == "mean":
        hierarchy.recenter_()


def clip_rows_(gradient_KP: Tensor, max_norm: float) -> None:
    """Clip each row's norm to `max_norm`, in place, on its own."""
    norm_K = torch.linalg.vector_norm(gradient_KP, dim=-1, keepdim=True)
    gradient_KP.mul_((max_norm / norm_K).clamp_(max=1.0))


SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def learning_rate_factors(config: Config, layout: Layout) -> Tensor:
    """The factor on the learning rate: rate_P with LoRA+, whose B learns faster (Hayou et al. 2024), else 1."""
    if config.lora.variant != "lora_plus":
        return torch.ones(())
    names, index_P = layout.parameter_groups("matrix")
    return torch.tensor([config.lora.learning_rate_ratio if name == "B" else 1.0 for name in names])[index_P]


def task_weights(config: Config, corpus: TokenizedCorpus) -> np.ndarray:
    """The weight of each task's nats in the objective, shape K.

    Where each task is a fit of its own, its objective is per token of its own text; where each group is, of its text.
    """
    documents = corpus.documents.iloc[corpus.split("train")]
    tokens_K = np.bincount(documents["task"], documents["num_tokens"], minlength=corpus.num_tasks)
    if config.is_by_group:
        assert corpus.group_K is not None
        return tokens_K.sum() / np.bincount(corpus.group_K, tokens_K)[corpus.group_K]
    if config.is_separate:
        return tokens_K.sum() / tokens_K
    if config.train.task_weights == "tasks":
        return tokens_K.mean() / tokens_K
    return np.ones(len(tokens_K))


def make_scheduler(config: Config, corpus: TokenizedCorpus, optimizer: torch.optim.Optimizer):
    """The learning rate's schedule, `train.schedule`, over the steps of `train.max_epochs` epochs.

    Args:
        config: Of the fit.
        corpus: Its training split decides the number of steps of an epoch.
        optimizer: From `make_optimizer`.
    """
    batches = num_training_batches(corpus, config.train.batch_size, config.train.tasks_per_batch)
    batches = ADD_STEPS if config.method == "add" else batches
    return get_scheduler(
        SCHEDULES[config.train.schedule],
        optimizer,
        num_warmup_steps=config.train.warmup_steps,
        num_training_steps=config.train.max_epochs * batches,
    )
