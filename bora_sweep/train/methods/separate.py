"""tau = 0, where each task is a fit of its own.

Shapes: N documents, F fits (one for each task).
"""

import numpy as np
import torch

from bora_sweep.data.batches import separate_batches
from bora_sweep.train.trainer import Trainer


class SeparateTrainer(Trainer):
    """Independent fits, one for each task: each has batches, a best epoch and patience of its own."""

    @property
    def num_fits(self) -> int:  # type: ignore[override]
        """D, one for each task."""
        return self.pack.corpus.num_tasks

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The documents of each step, of the tasks whose patience has not run out."""
        train, tasks = self.config.train, np.flatnonzero(self.has_patience(epoch))
        return separate_batches(self.pack.corpus, train.batch_size, train.seed, epoch, tasks)

    def begin_step(self) -> None:
        """Set the gradient to 0, so that a task without a document in the batch takes a step as well."""
        bank = self.hierarchy.task_KP
        assert bank is not None
        bank.grad = torch.zeros_like(bank)

    def sum_of_fits(self, nll_N: np.ndarray) -> np.ndarray:
        """Nats of each task's validation documents."""
        corpus = self.pack.corpus
        return np.bincount(corpus.documents["task"].to_numpy()[corpus.split("validation")], nll_N, self.num_fits)

    def mean_of_fits(self, task_N: np.ndarray, score_N: np.ndarray) -> np.ndarray:
        """The mean score of each task's validation documents; 0 where it has none, so that its perplexity chooses."""
        return np.bincount(task_N, score_N, self.num_fits) / np.maximum(1, np.bincount(task_N, minlength=self.num_fits))

    def keep(self, better_F: np.ndarray) -> None:
        """Keep the adapters of the tasks that are better."""
        rows = torch.from_numpy(better_F[self.pack.shard.tasks])
        self.best["task_KP"][rows] = self.parameters()["task_KP"][rows]
