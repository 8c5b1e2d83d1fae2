"""Which trainer makes a fit, and the one of tau = 0, where each task is a fit of its own.

Shapes: N documents, F fits (one for each task).
"""

import numpy as np
import torch

from bora_sweep.data.batches import separate_batches
from bora_sweep.train.trainer import Trainer


class SeparateTrainer(Trainer):
    """tau = 0: each task is a fit of its own, with its own batches, best epoch and patience; nothing passes."""

    @property
    def num_fits(self) -> int:  # type: ignore[override]
        """D."""
        return self.corpus.num_tasks

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Those of the tasks whose patience has not run out."""
        train, tasks = self.config.train, np.flatnonzero(self._is_due(epoch))
        return separate_batches(self.corpus, train.batch_size, train.seed, epoch, tasks)

    def begin_step(self) -> None:
        """A task's step is its own, also where no task has a document for it: the gradient is then 0."""
        bank = self.hierarchy.task_KP
        assert bank is not None
        bank.grad = torch.zeros_like(bank)

    def _nats_of_fits(self, nll_N: np.ndarray) -> np.ndarray:
        task_N = self.corpus.documents["task"].to_numpy()[self.corpus.split("validation")]
        return np.bincount(task_N, nll_N, self.num_fits)

    def _keep(self, better_F: np.ndarray) -> None:
        rows = torch.from_numpy(better_F[self.share.tasks])
        self.best["task_KP"][rows] = self._parameters()["task_KP"][rows]
