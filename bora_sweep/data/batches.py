"""Batches of a tokenised corpus: which documents stand together, and how a batch is padded.

Shapes: N documents, B rows, T tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bora_sweep.data.tokens import FILLED, SMALLEST_PART, TokenizedCorpus

SORTED_BATCHES = 32  # batches whose documents are sorted by length among themselves before they are cut


@dataclass(frozen=True)
class TaskBatch:
    """Rows of several tasks, padded on the right to the longest, or to the longest of the batch that they are part of.

    The first `given_B` tokens of a row, its start symbol or its prompt, are not scored.
    """

    document_B: np.ndarray
    task_B: np.ndarray
    given_B: np.ndarray
    length_B: np.ndarray
    tokens_BT: np.ndarray
    scores_padding: bool = False

    @property
    def num_tokens(self) -> int:
        """Scored tokens."""
        whole = self.tokens_BT.size if self.scores_padding else int(self.length_B.sum())
        return whole - int(self.given_B.sum())


def collate(corpus: TokenizedCorpus, document_B: np.ndarray, width: int | None = None) -> TaskBatch:
    """The batch of these documents; with `width` all rows are that long, and what fills them is scored."""
    starts = corpus.offsets[document_B]
    length_B = corpus.offsets[document_B + 1] - starts
    given_B = length_B - corpus.documents["num_tokens"].to_numpy()[document_B]
    tokens_BT = np.full((len(document_B), width or length_B.max()), corpus.padding, dtype=np.int64)
    for row, (start, length) in enumerate(zip(starts, length_B, strict=True)):
        tokens_BT[row, :length] = corpus.tokens[start : start + length]
    task_B = corpus.documents["task"].to_numpy()[document_B]
    return TaskBatch(document_B, task_B, given_B, length_B, tokens_BT, scores_padding=width is not None)


def longest_of(corpus: TokenizedCorpus, document_B: np.ndarray) -> int:
    """Tokens of the longest of these documents."""
    return int((corpus.offsets[document_B + 1] - corpus.offsets[document_B]).max())


def training_batches(corpus: TokenizedCorpus, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The training split once, in an order that (seed, epoch) decides, as documents of each batch.

    Documents are shuffled, then sorted by length within a few batches' worth, so that rows of a batch are of like
    length and little of it is padding; then the batches are shuffled.
    """
    rng = np.random.default_rng([seed, epoch])
    document_N = rng.permutation(corpus.split("train"))
    length_N = np.diff(corpus.offsets)[document_N]
    chunk_N = np.arange(len(document_N)) // (SORTED_BATCHES * batch_size)
    by_length = document_N[np.lexsort((length_N, chunk_N))]
    batches = [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def fixed_batches(corpus: TokenizedCorpus, split: str, batch_size: int, seed: int) -> list[np.ndarray]:
    """A split in an order that `seed` decides, whatever the documents' lengths, as documents of each batch."""
    document_N = np.random.default_rng(seed).permutation(corpus.split(split))
    return [document_N[i : i + batch_size] for i in range(0, len(document_N), batch_size)]


def separate_batches(
    corpus: TokenizedCorpus, batch_size: int, seed: int, epoch: int, tasks: np.ndarray
) -> list[np.ndarray]:
    """The training split of `tasks` once, for fits that share nothing: a task's batches do not depend on other texts.

    Each task's documents are shuffled by (seed, epoch, task) and spread evenly over as many batches as
    `training_batches` makes of the whole split, some of them empty where few tasks are left. Within a few batches a
    task's shorter ones come first, then the batches are shuffled: texts of like length meet, and no task knows of
    another.
    """
    document_N, task_N, length_N = corpus.split("train"), corpus.documents["task"].to_numpy(), np.diff(corpus.offsets)
    num_batches = -(-len(document_N) // batch_size)
    batches: list[list[int]] = [[] for _ in range(num_batches)]
    for task in tasks:
        rng = np.random.default_rng([seed, epoch, task])
        own = rng.permutation(document_N[task_N[document_N] == task])
        place = ((np.arange(len(own)) + rng.random()) * num_batches / len(own)).astype(int) % num_batches
        by_length = own[np.lexsort((length_N[own], place // SORTED_BATCHES))]
        for n, batch in zip(by_length.tolist(), place, strict=True):
            batches[batch].append(n)
    order = np.random.default_rng([seed, epoch]).permutation(num_batches)
    return [np.array(batches[i], dtype=np.int64) for i in order]


def by_length(corpus: TokenizedCorpus, document_N: np.ndarray, limits: Sequence[int]) -> list[np.ndarray]:
    """These documents apart by length, the longest last, so that none is padded beyond a limit that it keeps."""
    if not limits:
        return [document_N]
    place_N = np.searchsorted(limits, np.diff(corpus.offsets)[document_N])
    return [document_N[place_N == place] for place in np.unique(place_N)]


def forward_parts(
    corpus: TokenizedCorpus,
    document_B: np.ndarray,
    largest: int | None = None,
    pass_tokens: int | None = None,
    limits: Sequence[int] = (),
) -> list[np.ndarray]:
    """`part_batch` of those documents of a batch that may stand beside each other, `by_length`."""
    apart = by_length(corpus, document_B, limits)
    return [part_B for own_B in apart for part_B in part_batch(corpus, own_B, largest, pass_tokens)]


def part_batch(
    corpus: TokenizedCorpus, document_B: np.ndarray, largest: int | None = None, pass_tokens: int | None = None
) -> list[np.ndarray]:
    """A batch's documents as the rows of one forward pass, or of several where too much of one would be padding.

    Sorted by length, of `largest` rows at most, and cut where that saves most, until `FILLED` of what passes through
    the model is not padding. Cuts end sooner where a further pass would cost more than it saves: given `pass_tokens`,
    where a cut saves fewer tokens of padding than these; else where the parts have `SMALLEST_PART` rows on average.
    """
    count = len(document_B)
    if count == 0:
        return []
    length_B = np.diff(corpus.offsets)[document_B]
    order = np.argsort(length_B, kind="stable")
    sorted_B, length_B, row_B = document_B[order], length_B[order], np.arange(count)
    cuts = np.append(np.arange(0, count, largest or count), count)
    while True:
        part_B = np.searchsorted(cuts, row_B, side="right")
        longest_B = length_B[cuts[part_B] - 1]
        shorter_B = row_B - cuts[part_B - 1]  # rows of the part before this one
        saved_B = shorter_B * (longest_B - np.roll(length_B, 1))
        is_dear = len(cuts) > count // SMALLEST_PART if pass_tokens is None else saved_B.max() < pass_tokens
        if is_dear or length_B.sum() >= FILLED * longest_B.sum():
            return np.split(sorted_B, cuts[1:-1])
        cuts = np.sort(np.append(cuts, saved_B.argmax()))


def scoring_batches(
    corpus: TokenizedCorpus, document_N: np.ndarray, batch_size: int, limits: Sequence[int] = ()
) -> Iterator[TaskBatch]:
    """Each document once, the longest first, so that a batch that does not fit in memory is the first."""
    for own_N in reversed(by_length(corpus, document_N, limits)):
        order = np.argsort(-np.diff(corpus.offsets)[own_N], kind="stable")
        for i in range(0, len(order), batch_size):
            yield collate(corpus, own_N[order[i : i + batch_size]])
