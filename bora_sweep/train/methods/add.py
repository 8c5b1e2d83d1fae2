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


class AddTrainer(SeparateTrainer):
    """Fits of tasks under a Theta that does not move.

    A task with validation documents ends by its own patience, at its best epoch. One without any ends after
    `train.steps_without_validation` steps, rounded up to an epoch, and keeps the last.
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
        """Whether each task is trained in this epoch, or without validation documents has steps left for it."""
        return np.where(self.is_pooled_F, epoch <= self.epochs_without_validation, super().has_patience(epoch))

    @property
    def epochs_without_validation(self) -> int:
        """Epochs of a task without validation documents."""
        steps = self.config.train.steps_without_validation
        return self.config.train.max_epochs if steps is None else math.ceil(steps / ADD_STEPS)

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The documents of each step, of the tasks that have not ended."""
        train, tasks = self.config.train, np.flatnonzero(self.has_patience(epoch))
        return task_batches(self.pack.corpus, train.batch_size, train.seed, epoch, tasks)

    def sum_of_fits(self, nll_N: np.ndarray) -> np.ndarray:
        """Nats of each task's validation documents; where it has none, less in each epoch, so that the last is kept."""
        return np.where(self.is_pooled_F, -self.state.epoch, super().sum_of_fits(nll_N))

    def mean_of_fits(self, task_N: np.ndarray, score_N: np.ndarray) -> np.ndarray:
        """The mean score of each task's validation documents; 0 where it has none, so that `sum_of_fits` decides."""
        return np.where(self.is_pooled_F, 0.0, super().mean_of_fits(task_N, score_N))
