"""`method=vi`: a mean-field posterior over the tasks' deviations, by IVON.

Shapes: K adapters (one per task), P parameters of one adapter.
"""

import math

import numpy as np
from torch import Tensor

from bora_sweep.config import Config, with_values
from bora_sweep.errors import InputError
from bora_sweep.train.methods.ivon import Ivon
from bora_sweep.train.pack import Pack
from bora_sweep.train.trainer import Trainer

RATE = 0.1  # the step of the means, in Newton steps


class VariationalTrainer(Trainer):
    """A trainer of q(theta_d) = N(mu_d, diag(std_d^2)). Each gradient is taken at a draw of q; steps are IVON's.

    Gradients are not clipped, which would bias IVON's estimate of the Hessian.

    Raises:
        InputError: tau is 0 or inf, or the coordinates are centered.
    """

    def __init__(self, config: Config, pack: Pack) -> None:
        if not 0 < config.tau < math.inf or config.prior.parametrization != "noncentered":
            raise InputError(
                f"prior.tau={config.tau:g}, prior.parametrization={config.prior.parametrization}: a posterior "
                "over deviations needs 0 < tau < inf and noncentered coordinates"
            )
        super().__init__(with_values(config, train={"max_grad_norm": None, "solver": "proximal"}), pack)
        self.hierarchy.register_buffer("std_KP", self.ivon.std_KP())

    def make_optimizer(self) -> Ivon:
        """IVON, in place of Adam."""
        assert self.hierarchy.task_KP is not None
        self.ivon = Ivon(
            self.hierarchy.mean_P,
            self.hierarchy.task_KP,
            self.config.learning_rate,
            num_tokens=self.pack.protocol.objective_tokens,
            tau=self.hierarchy.precision,
            rate=RATE,
            seed=self.config.train.seed,
        )
        return self.ivon

    def begin_step(self, sequence_B: np.ndarray, following_B: np.ndarray | None = None) -> None:  # noqa: ARG002
        """Move the bank to a draw of q, where the gradient is taken."""
        self.ivon.perturb()

    def parameters(self) -> dict[str, Tensor]:
        return {**super().parameters(), "std_KP": self.ivon.std_KP().cpu()}

    def std_KP(self) -> Tensor:
        """The standard deviations of q at the best epoch; theta_1..K, its means, are what is scored."""
        return self.best["std_KP"]
