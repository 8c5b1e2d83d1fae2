"""`prior.tau=learn`: tau found on validation while the fit runs.

Now and then the fit asks whether validation documents are likelier with all deviations from Theta a fifth smaller. They
are scored twice for it, with smaller deviations and as the adapters are. The sum of the differences over documents, in
its standard errors, is z. If smaller deviations predict better, tau rises; if they predict worse, it falls:

    log tau <- log tau + GAIN * tanh(z / 2).

On a parabola both predict as well where the best factor is 0.9, so that tau comes to rest where deviations are a ninth
too large for a fit that has converged. Early stopping, which ends these fits, holds deviations back as well. The tasks'
training text cannot answer: on it, larger deviations predict better. docs/method.md has what else was tried.

Groups with a tau of their own (`prior.groups`) are asked about one by one: of parameters, each group's deviations made
smaller in turn; of tasks, each by its own documents. Their scales, tau_g / tau, are drawn to 1 by a hyperprior.

Shapes: N validation documents that are asked, G groups (or tasks).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from bora_sweep.config import Config
from bora_sweep.data.batches import num_training_batches
from bora_sweep.model.grouped_hierarchy import GroupedHierarchy
from bora_sweep.model.prior import group_precisions
from bora_sweep.train.evaluate import score_sequences
from bora_sweep.train.pack import Pack
from bora_sweep.train.trainer import Trainer

SMALLER = 0.8
"""Factor on the deviations in the question."""
GAIN = 0.4
"""Largest change of log tau after a question. One question cannot decide; the noise of several averages out."""
PULL = 0.1
"""What a scale loses of its log at each question: the hyperprior that draws the groups to each other."""
MIN_STEPS, QUESTIONS_PER_EPOCH = 8, 8
"""At least so many steps between two questions, in epochs that have them; at most so many questions in an epoch."""
SCORING = 0.8
"""Most work of the questions beside that of training: they score a document twice, without a backward pass. But one
question an epoch is asked in any case."""
DOCUMENTS = 256
"""Most validation documents of a question, spread evenly; tasks with a tau of their own are asked about all of them."""
LOWEST, HIGHEST = 1e-6, 1e12
"""tau stays between them, so that it is neither 0 nor inf."""


class LearnTauTrainer(Trainer):
    """A MAP fit whose tau moves with what validation says; its state keeps tau at the best epoch.

    With a level of groups tau_2 is learnt as well, unless it is given: by the same question about all Theta_g.
    """

    def __init__(self, config: Config, pack: Pack) -> None:
        super().__init__(config, pack)
        scale_of = config.prior.group_scales
        self.state.tau = self.state.best_tau = config.tau
        self.state.scales = self.state.best_scales = {name: scale_of.get(name, 1.0) for name in self.group_names}
        if isinstance(self.hierarchy, GroupedHierarchy) and config.prior.tau_2 is None:
            self.state.tau_2 = self.state.best_tau_2 = config.tau_2
        asked_N = pack.corpus.split("validation")
        if config.prior.groups != "task" and len(asked_N) > DOCUMENTS:
            asked_N = asked_N[np.linspace(0, len(asked_N) - 1, DOCUMENTS).round().astype(int)]
        self.asked_N = asked_N
        train = config.train
        num_batches = num_training_batches(pack.corpus, train.batch_size, train.tasks_per_batch)
        self.interval = interval(num_batches, len(asked_N) / train.batch_size)
        """Steps between two questions."""
        self.num_asked_tokens = int(pack.corpus.documents["num_tokens"].to_numpy()[asked_N].sum())
        sequence_C = pack.corpus.sequences("validation")
        self.sequences = sequence_C[np.isin(pack.corpus.document_of(sequence_C), asked_N)]

    def descend(self, nll_nats: float) -> None:
        """A step, and a question after every `interval` steps."""
        super().descend(nll_nats)
        if self.state.diverged is None and self.state.step % self.interval == 0:
            self._ask()

    def keep(self, better_F: np.ndarray) -> None:
        """Keep the parameters, and tau."""
        super().keep(better_F)
        state = self.state
        state.best_tau, state.best_tau_2, state.best_scales = state.tau, state.tau_2, dict(state.scales)

    def restored(self) -> None:
        """Go on with the tau of the checkpoint."""
        self._set_tau()

    def _ask(self) -> None:
        """Move tau, and the scales of groups, as validation says."""
        assert self.state.tau is not None
        now_N = self._nats()
        gain_N = now_N - self._nats(SMALLER)
        self.state.tau = moved_tau(self.state.tau, standard_errors(gain_N))
        if self.state.tau_2 is not None:
            self.state.tau_2 = moved_tau(self.state.tau_2, standard_errors(now_N - self._nats_of_smaller_groups()))
        if self.group_names:
            moved_G = moved_scales(self._scale_G(), self._gains_of_groups(now_N, gain_N))
            self.state.scales = dict(zip(self.group_names, moved_G, strict=True))
        self._set_tau()

    def _scale_G(self) -> list[float]:
        """The scales in the order of the groups now: a checkpoint may have the tasks in another one."""
        return [self.state.scales[name] for name in self.group_names]

    def _gains_of_groups(self, now_N: np.ndarray, gain_N: np.ndarray) -> np.ndarray:
        """z_G: what smaller deviations of each group gain, in standard errors.

        Args:
            now_N: Nats of the documents as the adapters are.
            gain_N: What they gain where all deviations are smaller.
        """
        if self.config.prior.groups == "task":
            task_N = self.pack.corpus.documents["task"].to_numpy()[self.asked_N]
            return np.array([standard_errors(gain_N[task_N == task]) for task in range(len(self.group_names))])
        return np.array([standard_errors(now_N - self._nats(factor_P)) for factor_P in self._factors()])

    def _factors(self) -> Iterator[Tensor]:
        """For each group of parameters the factor on each coordinate."""
        kind = self.config.prior.groups
        assert kind in ("matrix", "layer")
        index_P = self.pack.layout.parameter_groups(kind)[1].to(self.hierarchy.mean_P.device)
        for group in range(len(self.group_names)):
            yield torch.where(index_P == group, SMALLER, 1.0).to(self.hierarchy.mean_P.dtype)

    def _nats(self, factor: float | Tensor | None = None) -> np.ndarray:
        """Nats of the documents that are asked, with deviations multiplied by `factor`."""
        with deviations_times(self, factor):
            return self._score()

    def _nats_of_smaller_groups(self) -> np.ndarray:
        """Nats of the documents that are asked, with Theta_g nearer to Theta."""
        assert isinstance(self.hierarchy, GroupedHierarchy)
        self.hierarchy.group_factor = SMALLER
        try:
            return self._score()
        finally:
            self.hierarchy.group_factor = None

    def _score(self) -> np.ndarray:
        nll_SC = score_sequences(self.pack, [self], self.sequences)
        self.state.asked_tokens += self.num_asked_tokens
        return self.pack.corpus.sum_by_document(nll_SC)[0, self.asked_N]

    def _set_tau(self) -> None:
        """Put the state's tau, tau_2 and scales where the step reads them."""
        tau, tau_2, hierarchy = self.state.tau, self.state.tau_2, self.hierarchy
        assert tau is not None
        groups, tasks = self.config.prior.groups, self.pack.shard.tasks
        precision = group_precisions(tau, self._scale_G(), groups, self.pack.layout, tasks, hierarchy.mean_P)
        hierarchy.tau, hierarchy.precision = tau, tau if precision is None else precision
        if isinstance(hierarchy, GroupedHierarchy) and tau_2 is not None:
            hierarchy.tau_2 = tau_2
        if self.config.solver == "proximal":
            for group in self.optimizer.param_groups:
                (bank,) = group["params"]
                if isinstance(hierarchy, GroupedHierarchy) and bank is hierarchy.group_GP:
                    group["prior_precision"] = hierarchy.tau_2 / self.prior_tokens
                elif bank is not hierarchy.mean_P:  # the tasks' rows, which `train.update=present` exchanges
                    group["prior_precision"] = hierarchy.precision / self.prior_tokens


def interval(num_batches: int, question: float) -> int:
    """Steps between two questions.

    Args:
        num_batches: Of an epoch.
        question: The work of one in steps: its documents over those of a batch, as two passes forward take as long as
            one forward and one backward.
    """
    asked_for = max(MIN_STEPS, num_batches // QUESTIONS_PER_EPOCH, math.ceil(question / SCORING))
    return min(num_batches, asked_for)


@contextmanager
def deviations_times(fit: Trainer, factor: float | Tensor | None) -> Iterator[None]:
    """While it is open, the fit's adapters are Theta + factor * (theta_d - Theta)."""
    fit.hierarchy.deviation_factor = factor
    try:
        yield
    finally:
        fit.hierarchy.deviation_factor = None


def moved_tau(tau: float, z: float) -> float:
    """tau after a question whose answer is z: what smaller deviations gain, in standard errors."""
    return min(HIGHEST, max(LOWEST, tau * math.exp(GAIN * math.tanh(z / 2))))


def standard_errors(gain_N: np.ndarray) -> float:
    """The sum of these gains in its standard errors, sum g / sqrt(sum g^2); 0 where all are 0."""
    norm = math.sqrt(float(np.square(gain_N).sum()))
    return float(gain_N.sum()) / norm if norm > 0 else 0.0


def moved_scales(scale_G: Sequence[float], z_G: np.ndarray) -> list[float]:
    """The groups' scales after a question; the mean of their logs is 0.

    Args:
        scale_G: Before it.
        z_G: The gains of smaller deviations of each group, in standard errors.
    """
    moved_G = (1 - PULL) * (np.log(scale_G) + GAIN * np.tanh(z_G / 2))
    return np.exp(moved_G - moved_G.mean()).tolist()
