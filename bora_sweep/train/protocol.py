"""How a fit is trained, selected and reported: the batches, the weight of each nat, the epoch that is kept.

This is the default. `bora_sweep.train.methods.published` has the other one, the paper's published code.

Shapes: N documents, C sequences, B rows, F fits (at tau = 0 each task, else one), K adapters (one per task).
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch import Tensor

from bora_sweep.config import Config
from bora_sweep.data.batches import (
    TaskBatch,
    batches_of_few_tasks,
    collate,
    forward_parts,
    scoring_batches,
    training_batches,
    width_of,
)
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.model.hierarchy import Hierarchy
from bora_sweep.model.layout import Layout
from bora_sweep.train.optim import ProximalAdam
from bora_sweep.train.state import Reported, State

MakeBatches = Callable[[TokenizedCorpus, np.ndarray, int, Sequence[int]], Iterator[TaskBatch]]
"""(corpus, sequences, rows at most, length limits) -> the batches in which the sequences are scored."""


class Protocol:
    """Sums over tokens, batches of documents of similar length, and the epoch of the lowest validation perplexity.

    Args:
        config: Of the fit.
        corpus: The tokenised text.
    """

    optimizer: type[ProximalAdam] = ProximalAdam

    def __init__(self, config: Config, corpus: TokenizedCorpus) -> None:
        self.train, self.corpus = config.train, corpus
        self.objective_tokens = corpus.num_tokens("train")
        """N, by which the objective is divided."""
        self.num_validation_tokens = corpus.num_tokens("validation")

    def hierarchy_class(self, layout: Layout) -> Callable[..., Hierarchy]:  # noqa: ARG002
        """What makes a fit's Theta and tasks, with the arguments of `Hierarchy`, for adapters of this layout."""
        return Hierarchy

    def initialise_(self, hierarchy: Hierarchy, tasks: slice) -> None:
        """Change the initial adapters, which are those of Theta; `tasks` are those of this process."""

    def check_lengths(self, limits: Sequence[int]) -> None:
        """Refuse a model whose `limits` on the length of a row this protocol cannot keep."""

    def training_batches(self, epoch: int) -> list[np.ndarray]:
        """The sequences of each step of an epoch."""
        train = self.train
        if train.tasks_per_batch is not None:
            return batches_of_few_tasks(self.corpus, train.batch_size, train.tasks_per_batch, train.seed, epoch)
        return training_batches(self.corpus, train.batch_size, train.seed, epoch)

    def forward_batches(
        self, sequence_B: np.ndarray, rows: int, pass_tokens: int | None, limits: Sequence[int]
    ) -> list[TaskBatch]:
        """A step's sequences as the batches of its forward passes.

        Args:
            sequence_B: The sequences that this process works on.
            rows: Documents of a pass, at most.
            pass_tokens: Tokens that cost as much as a further pass; None: as `forward_parts` decides.
            limits: Lengths beyond which no shorter document is padded.
        """
        parts = forward_parts(self.corpus, sequence_B, rows, pass_tokens, limits)
        bucket = self.train.length_bucket
        return [collate(self.corpus, part_B, width_of(self.corpus, part_B, bucket, limits)) for part_B in parts]

    def batch_weights(self, weight_K: Tensor, sequence_B: np.ndarray, num_batches: int) -> tuple[float, Tensor]:  # noqa: ARG002
        """What the nats of a batch are multiplied by in the objective: a factor for all tasks, and one for each.

        The M batches of an epoch partition the training split. So M times the nats of a random batch is an unbiased
        estimate of the sum of Eq. 4, and the estimates of an epoch average to that sum.

        Args:
            weight_K: The weight of each task's nats.
            sequence_B: The sequences of the step, on all processes.
            num_batches: M.
        """
        return num_batches / self.objective_tokens, weight_K

    def validation_batches(
        self, corpus: TokenizedCorpus, sequence_C: np.ndarray, rows: int, limits: Sequence[int]
    ) -> Iterator[TaskBatch]:
        """The batches in which validation is scored after an epoch, a `MakeBatches`.

        Args:
            corpus: The tokenised text.
            sequence_C: Indices of the sequences to score.
            rows: Documents of a batch, at most.
            limits: Lengths beyond which no shorter document is padded.
        """
        return scoring_batches(corpus, sequence_C, rows, limits, self.train.length_bucket)

    def selection_nats(self, state: State, nll_N: np.ndarray, nats_F: np.ndarray) -> np.ndarray | None:  # noqa: ARG002
        """What validation selects an epoch by, for each fit; None where the epoch is no candidate.

        Args:
            state: Of the fit; a protocol may keep numbers of its own there.
            nll_N: Nats of each validation document.
            nats_F: Their sum for each fit.
        """
        return nats_F

    def reported(self, state: State, score_test: Callable[[MakeBatches], np.ndarray]) -> Reported | None:  # noqa: ARG002
        """The numbers that the protocol reports where they are not the perplexity of test.

        Args:
            state: Of the fit that has ended.
            score_test: Scores the test split, nll_N, in the batches that it is given.
        """
        return None
