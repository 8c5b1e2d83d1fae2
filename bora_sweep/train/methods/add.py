"""Fits of new tasks under a prior that a run has decided: Theta and tau are held, and no task knows of another.

The objective of each task d is (1/N_d) [nll_d(theta_d) + tau/2 ||theta_d - Theta||^2]. Its batches, steps, best epoch
and end are functions of its own documents. So tasks that are added together get what each would get alone.

Shapes: F fits (one for each task), K tasks of this process, N documents.
"""

import math

import numpy as np
import torch
from torch import Tensor

from bora_sweep.config import Config
from bora_sweep.data.batches import ADD_STEPS, batches_of_task, task_batches
from bora_sweep.train.methods.separate import SeparateTrainer
from bora_sweep.train.pack import Pack

STILL = 0.01
"""Movement in an epoch, as a share of the distance to Theta, below which a task has reached its MAP."""


class AddTrainer(SeparateTrainer):
    """Fits of tasks under a Theta that does not move.

    A task with validation documents ends by its own patience, at its best epoch. One without any ends where its MAP is
    reached, as its adapter stands still; at the latest after `train.steps_without_validation` steps, rounded up to an
    epoch.
    """

    def __init__(self, config: Config, pack: Pack) -> None:
        corpus, tasks = pack.corpus, pack.shard.tasks
        train = corpus.documents.iloc[corpus.split("train")]
        tokens_K = np.bincount(train["task"], train["num_tokens"], minlength=corpus.num_tasks)[tasks]
        batches_K = [batches_of_task(corpus, task, config.train.batch_size) for task in range(tasks.start, tasks.stop)]
        dtype = torch.promote_types(pack.base.dtype, torch.float32)
        self.tokens_K = torch.from_numpy(tokens_K).to(pack.accelerator.device, dtype)
        super().__init__(config, pack)
        # In an epoch a task's documents are seen ADD_STEPS / M_d times, as one of its M_d batches is in each step.
        self.weight_K *= torch.tensor(batches_K, device=self.weight_K.device, dtype=dtype) / ADD_STEPS

    @property
    def prior_tokens(self) -> Tensor:
        """N_d of each task, shape (K, 1)."""
        return self.tokens_K[:, None]

    @property
    def stopped_by(self) -> str | None:
        """As for other fits; `steps` where no task has validation documents."""
        why = super().stopped_by
        return "steps" if why == "patience" and self.is_pooled_F.all() else why

    def has_patience(self, epoch: int) -> np.ndarray:
        """Whether each task is trained in this epoch: without validation documents, if the one before was kept."""
        steps = self.config.train.steps_without_validation
        has_steps = steps is None or epoch <= math.ceil(steps / ADD_STEPS)
        return np.where(self.is_pooled_F, has_steps & self._is_kept(epoch - 1), super().has_patience(epoch))

    def _is_kept(self, epoch: int) -> np.ndarray:
        """Whether the best epoch of each task is this one, or a later one."""
        return np.array(self.state.best_epochs) >= epoch

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The documents of each step, of the tasks that have not ended."""
        train, tasks = self.config.train, np.flatnonzero(self.has_patience(epoch))
        return task_batches(self.pack.corpus, train.batch_size, train.seed, epoch, tasks)

    def sum_of_fits(self, nll_N: np.ndarray) -> np.ndarray:
        """Nats of each task's validation documents; where it has none, less in each epoch until it stands still."""
        without = np.where(self._stands_still(), self.state.best_nll_nats, -self.state.epoch)
        return np.where(self.is_pooled_F, without, super().sum_of_fits(nll_N))

    def _stands_still(self) -> np.ndarray:
        """Whether each task's deviation has moved by less than `STILL` of its norm since it was last kept."""
        if self.state.epoch == 0:
            return np.zeros(self.num_fits, dtype=bool)
        before_KP, now_KP = self.best["task_KP"], self.parameters()["task_KP"]
        moved_K, norm_K = (torch.linalg.vector_norm(bank_KP, dim=1) for bank_KP in (now_KP - before_KP, now_KP))
        return (moved_K < STILL * norm_K).numpy()

    def mean_of_fits(self, task_N: np.ndarray, score_N: np.ndarray) -> np.ndarray:
        """The mean score of each task's validation documents; 0 where it has none, so that `sum_of_fits` decides."""
        return np.where(self.is_pooled_F, 0.0, super().mean_of_fits(task_N, score_N))
