"""The numbers that the paper's published code reports, where they are not ours.

It scores the validation split in fixed batches, takes in each batch each task's mean over the tokens of its rows, and
in each epoch the mean of these over batches, a batch counting by its rows. What it prints for a task is the lowest
of these over all epochs; for all tasks together, the lowest mean over batches of exp(mean of the batch's task means).

Shapes: N documents of a split, M batches, K tasks.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bora_sweep.config import TrainConfig
from bora_sweep.data.batches import fixed_batches, longest_of
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.train.state import Reported


@dataclass(frozen=True)
class EpochNumbers:
    """Of one pass over a split."""

    nats: float
    """Per token: the mean over batches of the mean of their tasks. What the published code selects epochs by."""
    perplexity: float
    """The mean over batches of the perplexity of that."""
    nats_K: np.ndarray
    """Per token of each task: the mean over the batches that it is in; NaN for a task without documents."""


class ScoredSplit:
    """A split in fixed batches: which documents stand together, and how many positions of each are scored."""

    def __init__(self, corpus: TokenizedCorpus, split: str, train: TrainConfig) -> None:
        self.corpus, self.name = corpus, split
        self.batches = fixed_batches(corpus, split, train.batch_size, train.seed)
        self.scores_padding = train.padding == "scored"

    @cached_property
    def scored_N(self) -> np.ndarray:
        """Scored positions of each document, in the corpus's order; with padding as many as its batch's longest has."""
        scored = self.corpus.documents["num_tokens"].to_numpy().copy()
        if self.scores_padding:
            length = np.diff(self.corpus.offsets)
            for document_B in self.batches:
                scored[document_B] += longest_of(self.corpus, document_B) - length[document_B]
        return scored[self.corpus.split(self.name)]

    def numbers(self, nll_N: np.ndarray) -> EpochNumbers:
        """The published code's, of the nats of each document."""
        document_N = self.corpus.split(self.name)
        place = np.empty(len(self.corpus.documents), dtype=np.int64)
        for number, document_B in enumerate(self.batches):
            place[document_B] = number
        shape = len(self.batches), self.corpus.num_tasks
        task_N = self.corpus.documents["task"].to_numpy()[document_N]
        cell_N = place[document_N] * shape[1] + task_N
        nats_MK = np.bincount(cell_N, nll_N, shape[0] * shape[1]).reshape(shape)
        scored_MK = np.bincount(cell_N, self.scored_N, shape[0] * shape[1]).reshape(shape)
        rows_M = np.array([len(document_B) for document_B in self.batches], dtype=float)
        mean_MK = np.divide(nats_MK, scored_MK, out=np.full(shape, np.nan), where=scored_MK > 0)
        mean_M = np.nanmean(mean_MK, axis=1)
        weight_MK = rows_M[:, None] * (scored_MK > 0)
        with np.errstate(over="ignore", invalid="ignore"):
            return EpochNumbers(
                nats=float(np.average(mean_M, weights=rows_M)),
                perplexity=float(np.average(np.exp(mean_M), weights=rows_M)),
                nats_K=np.nansum(weight_MK * mean_MK, axis=0) / weight_MK.sum(axis=0),
            )

    def sums(self, nll_N: np.ndarray) -> Reported:
        """Perplexities as they always are, nats over scored positions, with those of padding where it is scored."""
        task_N = self.corpus.documents["task"].to_numpy()[self.corpus.split(self.name)]
        nats_K, scored_K = np.bincount(task_N, nll_N), np.bincount(task_N, self.scored_N)
        with np.errstate(over="ignore"):
            return Reported(self.name, float(np.exp(nll_N.sum() / self.scored_N.sum())), np.exp(nats_K / scored_K))
