"""A mean-field posterior over the tasks' deviations, `method=vi`: how sure each task is of its adapter.

Shapes: K adapters (one per task), P parameters of one adapter, S samples, N documents.
"""

import math

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from bora_sweep.config import Config, with_values
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.errors import InputError
from bora_sweep.train.evaluate import score_documents
from bora_sweep.train.methods.ivon import Ivon
from bora_sweep.train.optim import make_scheduler
from bora_sweep.train.trainer import Trainer

RATE = 0.1  # IVON's step in units of a Newton step


class VariationalTrainer(Trainer):
    """A `Trainer` of q(theta_d) = N(mu_d, diag(std_d^2)): each gradient at a draw of it, steps by IVON, unclipped.

    Clipping would bend IVON's Hessian.

    Raises:
        InputError: tau is 0 or inf, or the coordinates are centered.
    """

    def __init__(
        self, config: Config, corpus: TokenizedCorpus, base: PreTrainedModel, accelerator: Accelerator
    ) -> None:
        if not 0 < config.prior.tau < math.inf or config.prior.parametrization != "noncentered":
            raise InputError(
                f"prior.tau={config.prior.tau:g}, prior.parametrization={config.prior.parametrization}: a posterior "
                "over deviations needs 0 < tau < inf and noncentered coordinates"
            )
        unclipped = with_values(config, train={"max_grad_norm": None, "solver": "proximal"})
        super().__init__(unclipped, corpus, base, accelerator)
        assert self.hierarchy.task_KP is not None
        self.ivon = Ivon(
            self.hierarchy.mean_P,
            self.hierarchy.task_KP,
            config.learning_rate,
            num_tokens=self.num_tokens,
            tau=self.hierarchy.precision,
            rate=RATE,
            seed=config.train.seed,
        )
        self.scheduler = make_scheduler(config, corpus, self.ivon)
        self.optimizer = accelerator.prepare(self.ivon)
        self.hierarchy.register_buffer("std_KP", self.ivon.std_KP())
        self.best = self._parameters()

    def begin_step(self) -> None:
        """Gradients are taken at a draw."""
        self.ivon.perturb()

    def _parameters(self) -> dict[str, Tensor]:
        std = {"std_KP": self.ivon.std_KP().cpu()} if hasattr(self, "ivon") else {}
        return {**super()._parameters(), **std}

    def std_KP(self) -> Tensor:
        """Of q at the best epoch, whose means are theta_1..K; an epoch is judged at them."""
        return self.best["std_KP"]

    def sampled_nll(self, num_samples: int) -> dict[str, np.ndarray]:
        """-log mean_s p(document | theta_s) for `num_samples` draws of q at the best epoch."""
        self.return_to_best()
        bank = self.hierarchy.task_KP
        assert bank is not None
        mean_KP, std_KP = bank.detach().clone(), self.hierarchy.get_buffer("std_KP")
        generator = torch.Generator(bank.device).manual_seed(self.config.train.seed)
        draws: dict[str, list[np.ndarray]] = {"validation": [], "test": []}
        for _ in range(num_samples):
            bank.data = mean_KP + std_KP * torch.empty_like(mean_KP).normal_(generator=generator)
            for split, nll in draws.items():
                nll.append(score_documents([self], split)[0])
        bank.data = mean_KP
        return {split: math.log(num_samples) - np.logaddexp.reduce(-np.stack(nll)) for split, nll in draws.items()}
