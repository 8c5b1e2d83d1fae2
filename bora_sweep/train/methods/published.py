"""`protocol=published_code`: where the paper's published code differs from the paper's equations.

Its likelihood is a task's mean over the tokens of its rows in a batch, times the task's number of documents. Padding is
scored. At tau = 0 a task without a document in the batch does not move. Validation is scored in fixed batches: in each
batch, each task's mean over the tokens of its rows; in each epoch, the mean of these over batches, weighted by rows.
The reported number of a task is the lowest of these over all epochs. The reported number of all tasks is the lowest
mean over batches of exp(mean of the batch's task means).

Shapes: N documents of a split, C sequences, B rows, M batches, K tasks, F fits, P parameters of one adapter.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from bora_sweep.config import Config, DataConfig
from bora_sweep.data.batches import TaskBatch, collate, fixed_batches, longest_of
from bora_sweep.data.split import sampled_order
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.errors import InputError
from bora_sweep.model.hierarchy import Hierarchy
from bora_sweep.model.layout import Layout
from bora_sweep.model.tensor_norm import TensorNormHierarchy
from bora_sweep.train.optim import ProximalAdam
from bora_sweep.train.protocol import MakeBatches, Protocol
from bora_sweep.train.state import Reported, State


def differs_from_default(config: Config) -> bool:
    """Whether any setting asks for what only the published code does."""
    train = config.train
    settings = train.likelihood, train.padding, train.independent, train.reported, train.batches, train.initial_noise
    return (*settings, config.prior.penalty) != ("tokens", "ignored", "separate", "test", "by_length", 0.0, "squared")


class PublishedCode(Protocol):
    """The published code's prior, likelihood, batches, optimiser and numbers, each where its setting asks for it.

    Args:
        config: Of the fit.
        corpus: The tokenised text.
    """

    def __init__(self, config: Config, corpus: TokenizedCorpus) -> None:
        super().__init__(config, corpus)
        self.penalty = config.prior.penalty
        self.config = config
        self.validation = ScoredSplit(corpus, "validation", config)
        self.num_validation_tokens = int(self.validation.scored_N.sum())
        self.is_separate = config.is_separate
        if config.train.likelihood == "documents":
            self.objective_tokens = 1
        if config.tau == 0 and config.train.independent == "joint":
            self.optimizer = RowwiseAdam

    def hierarchy_class(self, layout: Layout) -> Callable[..., Hierarchy]:
        """With `prior.penalty=tensor_norm` a `TensorNormHierarchy`."""
        if self.penalty == "squared":
            return super().hierarchy_class(layout)
        return partial(TensorNormHierarchy, tensor_sizes=layout.sizes)

    @torch.no_grad()
    def initialise_(self, hierarchy: Hierarchy, tasks: slice) -> None:
        """With `train.initial_noise` move each task's adapter off Theta by noise that its seed and place decide."""
        bank, noise = hierarchy.task_KP, self.train.initial_noise
        if bank is not None and noise > 0:
            for row, task in enumerate(range(tasks.start, tasks.stop)):
                noise_P = np.random.default_rng([self.train.seed, task]).normal(0, noise, bank.shape[-1])
                bank[row] += torch.from_numpy(noise_P).to(bank)

    def check_lengths(self, limits: Sequence[int]) -> None:
        """Refuse limits on the length of a row where shorter documents are padded to the longest of their batch.

        Raises:
            InputError: There is a limit, and padding is scored.
        """
        if limits and self.train.padding == "scored":
            raise InputError(
                f"train.padding={self.train.padding}: the model is another one in rows of more than {limits[0]} "
                f"tokens, to which shorter documents would be filled up; set model.max_tokens={limits[0]}"
            )

    def training_batches(self, epoch: int) -> list[np.ndarray]:
        """With `train.batches=fixed` the same in each epoch, whatever the documents' lengths."""
        if self.train.batches == "fixed":
            return self._fixed_batches
        return super().training_batches(epoch)

    @cached_property
    def _fixed_batches(self) -> list[np.ndarray]:
        sequence_C = published_order(self.corpus, "train", self.config.data)
        return fixed_batches(sequence_C, self.train.batch_size, self.train.seed)

    def forward_batches(
        self, sequence_B: np.ndarray, rows: int, pass_tokens: int | None, limits: Sequence[int]
    ) -> list[TaskBatch]:
        """Where padding is scored, rows as long as the longest of the step."""
        if self.train.padding == "scored" and len(sequence_B):
            return list(filled_batches(self.corpus, [sequence_B], rows))
        return super().forward_batches(sequence_B, rows, pass_tokens, limits)

    def batch_weights(self, weight_K: Tensor, sequence_B: np.ndarray, num_batches: int) -> tuple[float, Tensor]:
        """With `train.likelihood=documents` a task's documents over its scored tokens in the batch."""
        if self.train.likelihood == "tokens":
            return super().batch_weights(weight_K, sequence_B, num_batches)
        scored_B = self.corpus.documents["num_tokens"].to_numpy()[sequence_B]
        if self.train.padding == "scored" and len(sequence_B):
            scored_B = scored_B + longest_of(self.corpus, sequence_B) - np.diff(self.corpus.offsets)[sequence_B]
        task_N, size = self.corpus.documents["task"].to_numpy(), self.corpus.num_tasks
        scored_K = np.bincount(task_N[sequence_B], scored_B, size)
        weight = np.bincount(task_N[self.corpus.split("train")], minlength=size) / np.maximum(scored_K, 1)
        return 1.0, torch.from_numpy(weight).to(weight_K)

    def validation_batches(
        self, corpus: TokenizedCorpus, sequence_C: np.ndarray, rows: int, limits: Sequence[int]
    ) -> Iterator[TaskBatch]:
        """Where padding is scored, the fixed batches, each filled to its longest."""
        if self.train.padding == "scored":
            return filled_batches(corpus, self.validation.batches, rows)
        return super().validation_batches(corpus, sequence_C, rows, limits)

    def selection_nats(self, state: State, nll_N: np.ndarray, nats_F: np.ndarray) -> np.ndarray | None:
        """With `train.reported=best_epochs` the published code's mean; it does not look at the untrained model."""
        if self.train.reported != "best_epochs":
            return nats_F
        if state.epoch == 0:
            return None
        numbers = self.validation.numbers(nll_N)
        earlier = state.reported_nats or [math.inf] * self.corpus.num_tasks
        state.reported_nats = np.fmin(earlier, numbers.nats_K).tolist()
        state.reported_perplexity = min(state.reported_perplexity, numbers.perplexity)
        return nats_F if self.is_separate else np.array([numbers.nats * self.num_validation_tokens])

    def reported(self, state: State, score_test: Callable[[MakeBatches], np.ndarray]) -> Reported | None:
        """The best epochs' perplexities on validation, or those of test with its padding."""
        if self.train.reported == "best_epochs":
            nats_K = np.array(state.reported_nats)  # empty where a fit has diverged within its first epoch
            return Reported("validation", state.reported_perplexity, np.exp(nats_K)) if len(nats_K) else None
        if self.train.padding == "ignored":
            return None
        test = ScoredSplit(self.corpus, "test", self.config)
        return test.sums(score_test(lambda corpus, _, rows, __: filled_batches(corpus, test.batches, rows)))


def published_order(corpus: TokenizedCorpus, split: str, data: DataConfig) -> np.ndarray:
    """The sequences of a split as the published code has them before it shuffles: tasks in order, each as it was drawn.

    With another `data.split` than `sample` nothing was drawn in an order: each task's are as in the source.

    Args:
        corpus: The tokenised text.
        split: "train", "validation" or "test".
        data: How the documents were split.
    """
    sequence_C = corpus.sequences(split)
    if data.split != "sample":
        return sequence_C
    task_N, split_N = corpus.documents["task"].to_numpy(), corpus.documents["split"].to_numpy()
    place_N = np.empty(len(split_N), dtype=np.int64)
    document_n = sampled_order(task_N, split_N, split, data.fractions, data.seed)
    place_N[document_n] = np.arange(len(document_n))
    return sequence_C[np.argsort(place_N[corpus.document_of(sequence_C)], kind="stable")]


def filled_batches(corpus: TokenizedCorpus, batches: Sequence[np.ndarray], rows: int) -> Iterator[TaskBatch]:
    """Each batch as forward passes of at most `rows` documents, all as long as the longest of the batch.

    Padding is scored; a mask hides it from the other positions.

    Args:
        corpus: The tokenised text.
        batches: Indices of the documents of each batch.
        rows: Documents of a forward pass, at most.
    """
    for sequence_B in batches:
        width = longest_of(corpus, sequence_B)
        for i in range(0, len(sequence_B), rows):
            batch = collate(corpus, sequence_B[i : i + rows], width)
            is_text_BT = np.arange(width) < batch.length_B[:, None]
            yield replace(batch, scored_BT=batch.scored_BT | ~is_text_BT, mask_BT=is_text_BT.astype(np.int64))


class RowwiseAdam(ProximalAdam):
    """Adam that leaves a task without a gradient as it is, with its moments and its count of steps.

    So does AdamW with one parameter for each task, where a task without a document in the batch has no gradient. There
    is no prior in it.
    """

    def _first_state(self, bank: Tensor) -> dict[str, Tensor]:
        step_K1 = torch.zeros(len(bank), 1, device=bank.device)
        return {"steps": step_K1, "exp_avg": torch.zeros_like(bank), "exp_avg_sq": torch.zeros_like(bank)}

    def _step(self, bank: Tensor, gradient: Tensor, group: dict) -> None:
        state, (beta1, beta2) = self.state[bank], group["betas"]
        moved = gradient.any(dim=-1).nonzero().squeeze(-1)
        g = gradient[moved]
        step_M1 = state["steps"][moved].double() + 1
        moment = state["exp_avg"][moved].lerp_(g, 1 - beta1)
        square = state["exp_avg_sq"][moved].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        metric = (square / (1 - beta2**step_M1).to(g.dtype)).sqrt_().add_(group["eps"])
        lr = group["lr"] * group["rate"]
        bank[moved] -= lr / (1 - beta1**step_M1).to(g.dtype) * moment / metric
        state["steps"][moved], state["exp_avg"][moved], state["exp_avg_sq"][moved] = step_M1.float(), moment, square


@dataclass(frozen=True)
class EpochNumbers:
    """The published code's numbers of one pass over a split."""

    nats: float
    """The mean over batches of the mean over their tasks, per token. The published code selects epochs by it."""
    perplexity: float
    """The mean over batches of exp of the mean over their tasks."""
    nats_K: np.ndarray
    """Each task's mean over its batches, per token; NaN for a task without documents."""


class ScoredSplit:
    """A split in fixed batches, and how many positions of each document are scored there."""

    def __init__(self, corpus: TokenizedCorpus, split: str, config: Config) -> None:
        self.corpus, self.name = corpus, split
        sequence_C = published_order(corpus, split, config.data)
        self.batches = fixed_batches(sequence_C, config.train.batch_size, config.train.seed)
        self.scores_padding = config.train.padding == "scored"

    @cached_property
    def scored_N(self) -> np.ndarray:
        """Scored positions of each document, in the corpus's order; with padding, those of its batch's longest."""
        scored = self.corpus.documents["num_tokens"].to_numpy().copy()
        if self.scores_padding:
            length = np.diff(self.corpus.offsets)
            for sequence_B in self.batches:
                scored[sequence_B] += longest_of(self.corpus, sequence_B) - length[sequence_B]
        return scored[self.corpus.split(self.name)]

    def numbers(self, nll_N: np.ndarray) -> EpochNumbers:
        """The published code's numbers from the nats of each document."""
        document_N = self.corpus.split(self.name)
        place = np.empty(len(self.corpus.documents), dtype=np.int64)
        for number, sequence_B in enumerate(self.batches):
            place[sequence_B] = number
        shape = len(self.batches), self.corpus.num_tasks
        task_N = self.corpus.documents["task"].to_numpy()[document_N]
        cell_N = place[document_N] * shape[1] + task_N
        nats_MK = np.bincount(cell_N, nll_N, shape[0] * shape[1]).reshape(shape)
        scored_MK = np.bincount(cell_N, self.scored_N, shape[0] * shape[1]).reshape(shape)
        rows_M = np.array([len(sequence_B) for sequence_B in self.batches], dtype=float)
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
        """Perplexities of sums, exp(nats / scored positions), padding included where it is scored."""
        task_N = self.corpus.documents["task"].to_numpy()[self.corpus.split(self.name)]
        nats_K, scored_K = np.bincount(task_N, nll_N), np.bincount(task_N, self.scored_N)
        with np.errstate(over="ignore"):
            return Reported(self.name, float(np.exp(nll_N.sum() / self.scored_N.sum())), np.exp(nats_K / scored_K))
