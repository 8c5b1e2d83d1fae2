"""Fits in which each task is on its own, at tau = 0 and under a Theta that is held; or each group, at tau_2 = 0.

Shapes: N documents, F fits (one for each task, or each group of tasks), K tasks of this process.
"""

import numpy as np
import torch

from bora_sweep.config import Config
from bora_sweep.data.batches import separate_batches
from bora_sweep.train.pack import Pack
from bora_sweep.train.trainer import Trainer


class SeparateTrainer(Trainer):
    """Independent fits, one for each task or each group: each has batches, a best epoch and patience of its own.

    One without validation documents cannot tell when to stop. It stops by the nats of all validation documents, the one
    thing that it learns from the others.
    """

    def __init__(self, config: Config, pack: Pack) -> None:
        corpus = pack.corpus
        by_group = corpus.group_K if config.is_by_group else None
        self.fit_K = np.arange(corpus.num_tasks) if by_group is None else by_group
        """The fit of each task."""
        super().__init__(config, pack)
        task_N = corpus.documents["task"].to_numpy()[corpus.split("validation")]
        self.is_pooled_F = np.bincount(self.fit_K[task_N], minlength=self.num_fits) == 0
        self.state.pooled = self.is_pooled_F.tolist()

    @property
    def num_fits(self) -> int:  # type: ignore[override]
        """F, one for each task or each group."""
        return int(self.fit_K.max()) + 1

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The documents of each step, of the fits whose patience has not run out."""
        train, fits = self.config.train, np.flatnonzero(self.has_patience(epoch))
        return separate_batches(self.pack.corpus, train.batch_size, train.seed, epoch, fits, self.fit_K)

    def begin_step(self, sequence_B: np.ndarray, following_B: np.ndarray | None = None) -> None:
        """If all fits are to step, set the gradients to 0: one without a document in the batch then steps as well."""
        super().begin_step(sequence_B, following_B)
        if self.bank is None:
            for bank, _ in self.hierarchy.precisions():
                bank.grad = torch.zeros_like(bank)

    def sum_of_fits(self, nll_N: np.ndarray) -> np.ndarray:
        """Nats of each fit's validation documents, or of all documents where it has none."""
        corpus = self.pack.corpus
        task_N = corpus.documents["task"].to_numpy()[corpus.split("validation")]
        nats_F = np.bincount(self.fit_K[task_N], nll_N, self.num_fits)
        return np.where(self.is_pooled_F, nll_N.sum(), nats_F)

    def mean_of_fits(self, task_N: np.ndarray, score_N: np.ndarray) -> np.ndarray:
        """The mean score of each fit's validation documents, or of all documents where it has none.

        Where a fit has validation documents and none of them has an answer, it is 0, so that its perplexity chooses.
        """
        fit_N = self.fit_K[task_N]
        count_F = np.maximum(1, np.bincount(fit_N, minlength=self.num_fits))
        mean_F = np.bincount(fit_N, score_N, self.num_fits) / count_F
        return np.where(self.is_pooled_F, score_N.sum() / max(1, len(score_N)), mean_F)

    def keep(self, better_F: np.ndarray) -> None:
        """Keep the adapters of the fits that are better."""
        is_better_K = better_F[self.fit_K[self.pack.shard.tasks]]
        if self.bank is not None:
            self.bank.keep_best(np.flatnonzero(is_better_K))
            return
        now = self.parameters()
        moved = {"task_KP": is_better_K} | ({"group_GP": better_F} if self.config.is_by_group else {})
        for name, is_better in moved.items():
            if name in now:
                rows = torch.from_numpy(is_better)
                self.best[name][rows] = now[name][rows]
