"""Fits in which each task is on its own: at tau = 0, and of new tasks under a prior whose Theta is held.

Shapes: N documents, F fits (one for each task).
"""

import numpy as np
import torch

from bora_sweep.config import Config
from bora_sweep.data.batches import separate_batches
from bora_sweep.train.pack import Pack
from bora_sweep.train.trainer import Trainer


class SeparateTrainer(Trainer):
    """Independent fits, one for each task: each has batches, a best epoch and patience of its own.

    A task without validation documents cannot tell when to stop. It stops by the nats of all tasks' validation
    documents, the one thing that it learns from the others.
    """

    def __init__(self, config: Config, pack: Pack) -> None:
        super().__init__(config, pack)
        corpus = pack.corpus
        task_N = corpus.documents["task"].to_numpy()[corpus.split("validation")]
        self.is_pooled_F = np.bincount(task_N, minlength=self.num_fits) == 0
        self.state.pooled = self.is_pooled_F.tolist()

    @property
    def num_fits(self) -> int:  # type: ignore[override]
        """D, one for each task."""
        return self.pack.corpus.num_tasks

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The documents of each step, of the tasks whose patience has not run out."""
        train, tasks = self.config.train, np.flatnonzero(self.has_patience(epoch))
        return separate_batches(self.pack.corpus, train.batch_size, train.seed, epoch, tasks)

    def begin_step(self, sequence_B: np.ndarray, following_B: np.ndarray | None = None) -> None:
        """If all tasks are to step, set the gradient to 0: one without a document in the batch then steps as well."""
        super().begin_step(sequence_B, following_B)
        bank = self.hierarchy.task_KP
        assert bank is not None
        if self.bank is None:
            bank.grad = torch.zeros_like(bank)

    def sum_of_fits(self, nll_N: np.ndarray) -> np.ndarray:
        """Nats of each task's validation documents, or of all documents where it has none."""
        corpus = self.pack.corpus
        nats_F = np.bincount(corpus.documents["task"].to_numpy()[corpus.split("validation")], nll_N, self.num_fits)
        return np.where(self.is_pooled_F, nll_N.sum(), nats_F)

    def mean_of_fits(self, task_N: np.ndarray, score_N: np.ndarray) -> np.ndarray:
        """The mean score of each task's validation documents, or of all documents where it has none.

        Where a task has validation documents and none of them has an answer, it is 0, so that its perplexity chooses.
        """
        count_F = np.maximum(1, np.bincount(task_N, minlength=self.num_fits))
        mean_F = np.bincount(task_N, score_N, self.num_fits) / count_F
        return np.where(self.is_pooled_F, score_N.sum() / max(1, len(score_N)), mean_F)

    def keep(self, better_F: np.ndarray) -> None:
        """Keep the adapters of the tasks that are better."""
        is_better_K = better_F[self.pack.shard.tasks]
        if self.bank is not None:
            self.bank.keep_best(np.flatnonzero(is_better_K))
            return
        rows = torch.from_numpy(is_better_K)
        self.best["task_KP"][rows] = self.parameters()["task_KP"][rows]
