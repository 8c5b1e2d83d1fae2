"""A mean-field posterior over the tasks' deviations: how sure each task is of its adapter.

Shapes: K adapters (one per task), P parameters of one adapter, S samples, N documents.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bora_sweep.config import Config, with_values
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.errors import InputError
from bora_sweep.train.ivon import Ivon
from bora_sweep.train.trainer import Fit, Trainer, _make_scheduler


@dataclass(frozen=True)
class VariationalFit:
    """q(theta_d) = N(mu_d, diag(std_d^2)) at the best epoch on validation, which is judged at mu."""

    fit: Fit
    """`theta_KP` holds mu, and `nll_nats` is that of mu."""
    std_KP: Tensor
    sampled_nll_nats: dict[str, np.ndarray]
    """-log mean_s p(document | theta_s) over draws of q, of each document of "validation" and "test"."""


class VariationalTrainer(Trainer):
    """A `Trainer` that takes each gradient at a draw of q and steps by IVON; clipping would bend its Hessian."""

    def __init__(self, config: Config, corpus: TokenizedCorpus, base: PreTrainedModel, rate: float) -> None:
        if not 0 < config.prior.tau < math.inf or config.prior.parametrization != "noncentered":
            raise InputError(
                f"prior.tau={config.prior.tau:g}, prior.parametrization={config.prior.parametrization}: a posterior "
                "over deviations needs 0 < tau < inf and noncentered coordinates"
            )
        super().__init__(with_values(config, train={"max_grad_norm": None, "solver": "proximal"}), corpus, base)
        assert self.hierarchy.task_KP is not None
        self.ivon = Ivon(
            self.hierarchy.mean_P,
            self.hierarchy.task_KP,
            config.learning_rate,
            num_tokens=self.num_tokens,
            tau=config.prior.tau,
            rate=rate,
            seed=config.train.seed,
        )
        self.scheduler = _make_scheduler(config, corpus, self.ivon)
        self.optimizer = self.accelerator.prepare(self.ivon)
        self.hierarchy.register_buffer("std_KP", self.ivon.std_KP())
        self.best = self._parameters()

    def _step(self, document_B: np.ndarray, num_batches: int) -> tuple[float, int]:
        self.ivon.perturb()
        return super()._step(document_B, num_batches)

    def _parameters(self) -> dict[str, Tensor]:
        std = {"std_KP": self.ivon.std_KP()} if hasattr(self, "ivon") else {}
        return {**super()._parameters(), **std}

    def sampled_nll(self, num_samples: int) -> dict[str, np.ndarray]:
        """-log mean_s p(document | theta_s) for `num_samples` draws of q at the best epoch."""
        self.hierarchy.load_state_dict(self.best)
        bank = self.hierarchy.task_KP
        assert bank is not None
        mean_KP, std_KP = bank.detach().clone(), self.hierarchy.get_buffer("std_KP")
        generator = torch.Generator(bank.device).manual_seed(self.config.train.seed)
        draws: dict[str, list[np.ndarray]] = {"validation": [], "test": []}
        for _ in range(num_samples):
            bank.data = mean_KP + std_KP * torch.empty_like(mean_KP).normal_(generator=generator)
            for split, nll in draws.items():
                nll.append(self._score(split))
        bank.data = mean_KP
        return {split: math.log(num_samples) - np.logaddexp.reduce(-np.stack(nll)) for split, nll in draws.items()}


def fit_variational(
    config: Config, corpus: TokenizedCorpus, base: PreTrainedModel, rate: float = 0.1, num_samples: int = 8
) -> VariationalFit:
    """Theta and the mean-field posterior of the deviations at `prior.tau`, by early stopping on validation.

    Args:
        config: What to fit; `train.learning_rate` is Theta's.
        corpus: The tokenised text.
        base: The base model; it is frozen, lent for the fit and given back as it came.
        rate: IVON's step in units of a Newton step.
        num_samples: Draws for `sampled_nll_nats`.

    Raises:
        DivergenceError: The loss is not finite.
        InputError: tau is 0 or inf, or the coordinates are centered.
    """
    trainer = VariationalTrainer(config, corpus, base, rate)
    try:
        trainer.start(None)
        while trainer.stopped_by is None:
            trainer.run_epoch(lambda _: None)
        sampled = trainer.sampled_nll(num_samples)
        return VariationalFit(trainer.finish(), trainer.hierarchy.get_buffer("std_KP").cpu(), sampled)
    finally:
        trainer.adapted.detach()
