"""Gradients of the training documents at one adapter, summed over folds of each task: what tells who is like whom.

Memory does not grow with the documents. Long sides of a large model's matrices are folded with random signs (feature
hashing, Weinberger et al. 2009), which keeps inner products in expectation.

Shapes: B rows, K tasks, F folds, P parameters of one adapter, Q coordinates that are kept; a part of an adapter is a
matrix (M, N), folded to (U, V).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bora_sweep.config import Config
from bora_sweep.data.batches import scoring_batches
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.layout import Layout, Part
from bora_sweep.model.lengths import length_limits
from bora_sweep.model.likelihood import Likelihood
from bora_sweep.model.placement import placed
from bora_sweep.similarity.whitening import Moments
from bora_sweep.train.device import make_accelerator
from bora_sweep.train.methods.document_gradients import DocumentPass

NUM_FOLDS = 8
"""F. A task of fewer documents has as many folds as documents."""
MOST_BYTES = 1 << 30
"""Of the sums of all tasks and folds."""
WIDEST, NARROWEST = 256, 4
"""Sides that a matrix is folded to, at most and at least."""


@dataclass(frozen=True)
class FoldSums:
    """The scores of the training split, whitened."""

    score_KFQ: np.ndarray
    tokens_KF: np.ndarray
    """Scored tokens."""


class _Folding:
    """Folds a part's matrix to sides of at most `width`; a vector is a matrix of one column."""

    def __init__(self, part: Part, width: int, rng: np.random.Generator) -> None:
        self.num_rows, self.num_columns = part.shape if len(part.shape) == 2 else (math.prod(part.shape), 1)
        self.rows, self.columns = (_bucket(size, width, rng) for size in (self.num_rows, self.num_columns))
        self.shape = min(self.num_rows, width), min(self.num_columns, width)

    def fold(self, flat_BP: Tensor) -> Tensor:
        """folded_BUV of each row."""
        folded = flat_BP.view(len(flat_BP), self.num_rows, self.num_columns)
        for dim, buckets in ((1, self.rows), (2, self.columns)):
            if buckets is not None:
                index, sign = (torch.from_numpy(array).to(flat_BP.device) for array in buckets)
                signed = folded * sign.view(-1, *[1] * (2 - dim)).to(folded)
                shape = [*folded.shape]
                shape[dim] = self.shape[dim - 1]
                folded = folded.new_zeros(shape).index_add_(dim, index, signed)
        return folded


def _bucket(size: int, width: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    """A bucket and a sign for each of `size` places; None where they fit as they are."""
    return None if size <= width else (rng.integers(width, size=size), rng.choice([-1.0, 1.0], size))


def fold_sums(
    config: Config,
    corpus: TokenizedCorpus,
    base: PreTrainedModel,
    layout: Layout,
    theta_P: Tensor,
    on_rows: Callable[[int], None] = lambda _: None,
) -> FoldSums:
    """The whitened scores of each task's training documents at theta_P, in folds. Costs about an epoch of training.

    Args:
        config: Of the fit; its batch size bounds the rows of a pass, its seed decides the folds.
        corpus: The tokenised text.
        base: The base model.
        layout: Of theta_P.
        theta_P: The adapter.
        on_rows: Called after each pass with its number of rows.
    """
    device = make_accelerator(config).device
    adapted = AdaptedModel(placed(base, device), layout)
    likelihood, theta_P = Likelihood(adapted, []), theta_P.to(device)
    rng = np.random.default_rng(config.train.seed)
    fold_N = _folds(corpus, rng)
    foldings = _foldings(layout, corpus.num_tasks, rng)
    sizes = [math.prod(folding.shape) for folding in foldings]
    moments = [Moments(*folding.shape) for folding in foldings]
    score_KFQ = np.zeros((corpus.num_tasks, NUM_FOLDS, sum(sizes)), dtype=np.float32)
    tokens_KF = np.zeros((corpus.num_tasks, NUM_FOLDS), dtype=np.int64)
    rows = config.train.micro_batch_size or config.train.batch_size
    limits = length_limits(base, corpus.shortest, corpus.longest)
    sequence_C = corpus.sequences("train")
    task_C, fold_C = corpus.task_C, fold_N[corpus.document_of(np.arange(len(corpus.task_C)))]
    np.add.at(tokens_KF, (task_C[sequence_C], fold_C[sequence_C]), corpus.num_tokens_C[sequence_C])
    try:
        for number, batch in enumerate(scoring_batches(corpus, sequence_C, rows, limits)):
            sequence_B = batch.sequence_B
            _, score_BP = DocumentPass(likelihood, batch, theta_P, 1, (number,)).nll_and_score()
            place_B = task_C[sequence_B], fold_C[sequence_B]
            offset = 0
            for flat_BP, folding, moment in zip(score_BP.split(layout.sizes, dim=1), foldings, moments, strict=True):
                folded_BUV = folding.fold(flat_BP.float()).cpu().numpy()
                moment.add(folded_BUV)
                size = math.prod(folding.shape)
                np.add.at(score_KFQ[:, :, offset : offset + size], place_B, folded_BUV.reshape(len(sequence_B), -1))
                offset += size
            on_rows(len(sequence_B))
    finally:
        adapted.remove_hooks()
    _whiten_(score_KFQ, foldings, moments)
    return FoldSums(score_KFQ, tokens_KF)


def _folds(corpus: TokenizedCorpus, rng: np.random.Generator) -> np.ndarray:
    """A fold for each training document, as equal in number as can be within each task; -1 for the others."""
    fold_N, document_N = np.full(len(corpus.documents), -1), corpus.split("train")
    task_N = corpus.documents["task"].to_numpy()
    shuffled = rng.permutation(document_N)
    shuffled = shuffled[np.argsort(task_N[shuffled], kind="stable")]
    _, first, count = np.unique(task_N[shuffled], return_index=True, return_counts=True)
    fold_N[shuffled] = (np.arange(len(shuffled)) - np.repeat(first, count)) % NUM_FOLDS
    return fold_N


def _foldings(layout: Layout, num_tasks: int, rng: np.random.Generator) -> list[_Folding]:
    """Of each part, as wide as `MOST_BYTES` allows."""
    width = WIDEST
    while True:
        foldings = [_Folding(part, width, rng) for part in layout.parts]
        num_bytes = 4 * num_tasks * NUM_FOLDS * sum(math.prod(folding.shape) for folding in foldings)
        if num_bytes <= MOST_BYTES or width == NARROWEST:
            return foldings
        width //= 2


def _whiten_(score_KFQ: np.ndarray, foldings: list[_Folding], moments: list[Moments]) -> None:
    offset = 0
    for folding, moment in zip(foldings, moments, strict=True):
        size = math.prod(folding.shape)
        part = score_KFQ[:, :, offset : offset + size]
        part[:] = moment.whiten(part.reshape(-1, *folding.shape)).reshape(part.shape)
        offset += size
