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
from bora_sweep.train.evaluate import score_sequences
from bora_sweep.train.methods.separate import SeparateTrainer
from bora_sweep.train.pack import Pack

RECENT, LITTLE = 4, 0.05
"""An objective has converged where the last of `RECENT` parts of its steps brought less than `LITTLE` of its fall."""


class AddTrainer(SeparateTrainer):
    """Fits of tasks under a Theta that does not move.

    A task with validation documents ends by its own patience, at its best epoch. One without any ends where its
    objective has converged, `converged_at`; at the latest after `train.steps_without_validation` steps, rounded up to
    an epoch.
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
        """Whether each task is trained in this epoch: without validation documents, until its objective converges."""
        if not self.is_pooled_F.any():
            return super().has_patience(epoch)
        has_steps = epoch <= math.ceil(self.config.train.steps_without_validation / ADD_STEPS)
        goes_on = has_steps & (converged_at(np.array(self.state.map_nats)) >= epoch)
        return np.where(self.is_pooled_F, goes_on, super().has_patience(epoch))

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The documents of each step, of the tasks that have not ended."""
        train, tasks = self.config.train, np.flatnonzero(self.has_patience(epoch))
        return task_batches(self.pack.corpus, train.batch_size, train.seed, epoch, tasks)

    def update_best(self, nll_N: np.ndarray, seconds: float, score_F: np.ndarray | None = None) -> None:
        """As for other fits; first the objectives of the tasks without validation documents are found."""
        if self.is_pooled_F.any():
            self.state.map_nats.append(self._map_nats().tolist())
        super().update_best(nll_N, seconds, score_F)

    def sum_of_fits(self, nll_N: np.ndarray) -> np.ndarray:
        """Nats of each task's validation documents; where it has none, less in each epoch until it has ended."""
        nats_F = super().sum_of_fits(nll_N)
        if not self.is_pooled_F.any():
            return nats_F
        goes_on = converged_at(np.array(self.state.map_nats)) >= self.state.epoch
        return np.where(self.is_pooled_F, np.where(goes_on, -self.state.epoch, self.state.best_nll_nats), nats_F)

    @torch.no_grad()
    def _map_nats(self) -> np.ndarray:
        """N_d J_d in nats, shape F: the task's training text, and the prior; 0 of tasks with validation documents."""
        corpus = self.pack.corpus
        train_C = corpus.sequences("train")
        own_C = train_C[self.is_pooled_F[corpus.task_C[train_C]]]
        nll_C = score_sequences(self.pack, [self], own_C)[0]
        prior_F = (self.hierarchy.precision * self.hierarchy.delta_KP().square()).sum(dim=1) / 2
        nats_F = np.bincount(corpus.task_C[own_C], nll_C[own_C], self.num_fits) + prior_F.cpu().numpy()
        return np.where(self.is_pooled_F, nats_F, 0.0)

    def mean_of_fits(self, task_N: np.ndarray, score_N: np.ndarray) -> np.ndarray:
        """The mean score of each task's validation documents; 0 where it has none, so that `sum_of_fits` decides."""
        return np.where(self.is_pooled_F, 0.0, super().mean_of_fits(task_N, score_N))


def converged_at(nats_EF: np.ndarray) -> np.ndarray:
    """The first epoch at which each objective has converged, shape F; the number of epochs, E, where none is.

    That is where the last quarter of the steps so far, and at least one epoch, brought less than 5% of all that the
    objective has fallen. The rule has no scale, and depends little on the learning rate.

    Args:
        nats_EF: The objectives at epochs 0, 1, …, E - 1.
    """
    first_F = np.full(nats_EF.shape[1], len(nats_EF))
    for epoch in range(len(nats_EF) - 1, 0, -1):
        before_F, now_F = nats_EF[epoch - max(1, epoch // RECENT)], nats_EF[epoch]
        fell_F = nats_EF[0] - now_F
        goes_on_F = (fell_F > 0) & (before_F - now_F >= LITTLE * fell_F)
        first_F[~goes_on_F] = epoch
    return first_F
