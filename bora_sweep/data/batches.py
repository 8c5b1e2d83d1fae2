"""Batches of a tokenised corpus: which sequences form a batch, which form a forward pass, and how rows are padded.

Shapes: C sequences (documents, or chunks of them), B rows, T tokens.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bora_sweep.data.tokens import TokenizedCorpus

SORTED_BATCHES = 32
"""Batches whose sequences are sorted by length together, before they are cut into batches."""
ADD_STEPS = 8
"""Steps of an epoch of `method=add`, whatever the tasks' sizes: between two scores of validation."""
ENOUGH_FILLED = 0.95
"""Share of a forward pass that is not padding, from which on a batch is cut no further."""
MIN_PASS_ROWS = 12
"""Mean rows of a forward pass, below which a batch is cut no further where the cost of a pass is not known."""


@dataclass(frozen=True)
class TaskBatch:
    """Rows of several tasks, padded on the right to a common length."""

    sequence_B: np.ndarray
    """Index of each row's sequence in the corpus."""
    task_B: np.ndarray
    """Index of each row's task."""
    length_B: np.ndarray
    """Tokens of each row without padding."""
    tokens_BT: np.ndarray
    scored_BT: np.ndarray
    """Whether each token is scored; the first one of a row is not, for nothing predicts it."""
    mask_BT: np.ndarray | None = None
    """1 for tokens, 0 for padding; None where no scored token sees padding."""

    @property
    def num_tokens(self) -> int:
        """Scored tokens of all rows."""
        return int(np.count_nonzero(self.scored_BT))


def collate(corpus: TokenizedCorpus, sequence_B: np.ndarray, width: int | None = None) -> TaskBatch:
    """The batch of these sequences.

    Args:
        corpus: The tokenised text.
        sequence_B: Indices of sequences in the corpus.
        width: Tokens of a row; None: as many as the longest sequence has.
    """
    starts = corpus.offsets[sequence_B]
    length_B = corpus.offsets[sequence_B + 1] - starts
    tokens_BT = np.full((len(sequence_B), width or length_B.max()), corpus.padding, dtype=np.int64)
    scored_BT = np.zeros(tokens_BT.shape, dtype=bool)
    for row, (start, length) in enumerate(zip(starts, length_B, strict=True)):
        tokens_BT[row, :length] = corpus.tokens[start : start + length]
        scored_BT[row, :length] = corpus.scored[start : start + length]
    return TaskBatch(sequence_B, corpus.task_C[sequence_B], length_B, tokens_BT, scored_BT)


def width_of(corpus: TokenizedCorpus, sequence_B: np.ndarray, bucket: int = 1, limits: Sequence[int] = ()) -> int:
    """Tokens of a row of these sequences: the longest's, rounded up to a multiple of `bucket`.

    It is rounded up to no more than the corpus's longest sequence, and not beyond a limit.

    Args:
        corpus: The tokenised text.
        sequence_B: Indices of sequences in the corpus.
        bucket: `train.length_bucket`.
        limits: Lengths that padding must not cross, see `group_by_length`.
    """
    longest = longest_of(corpus, sequence_B)
    beyond = bisect_left(limits, longest)
    most = limits[beyond] if beyond < len(limits) else corpus.longest
    return min(-(-longest // bucket) * bucket, max(longest, min(most, corpus.longest)))


def longest_of(corpus: TokenizedCorpus, sequence_B: np.ndarray) -> int:
    """Tokens of the longest of these sequences, without padding."""
    return int((corpus.offsets[sequence_B + 1] - corpus.offsets[sequence_B]).max())


def training_batches(corpus: TokenizedCorpus, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """One epoch over the training split: the sequences of each batch, in an order that (seed, epoch) decides.

    Sequences are shuffled, then sorted by length within `SORTED_BATCHES` batches, so that the rows of a batch have
    similar lengths and little padding. Then the batches are shuffled.

    Args:
        corpus: The tokenised text.
        batch_size: Sequences of a batch, at most.
        seed: `train.seed`.
        epoch: Counted from 1.
    """
    rng = np.random.default_rng([seed, epoch])
    sequence_C = rng.permutation(corpus.sequences("train"))
    length_C = np.diff(corpus.offsets)[sequence_C]
    block_C = np.arange(len(sequence_C)) // (SORTED_BATCHES * batch_size)
    by_length = sequence_C[np.lexsort((length_C, block_C))]
    batches = [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def batches_of_few_tasks(
    corpus: TokenizedCorpus, batch_size: int, tasks_per_batch: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """`training_batches` with sequences of at most `tasks_per_batch` tasks in each batch.

    Each task's sequences are shuffled and cut into pieces of batch_size / tasks_per_batch sequences. The pieces take
    the place of sequences: they are shuffled, sorted by length within `SORTED_BATCHES` batches, and put into batches.
    """
    rng = np.random.default_rng([seed, epoch])
    sequence_C = rng.permutation(corpus.sequences("train"))
    sequence_C = sequence_C[np.argsort(corpus.task_C[sequence_C], kind="stable")]
    start_G = _piece_starts(corpus.task_C[sequence_C], batch_size // tasks_per_batch)
    length_G = np.maximum.reduceat(np.diff(corpus.offsets)[sequence_C], start_G)
    pieces, piece_G = np.split(sequence_C, start_G[1:]), rng.permutation(len(start_G))
    block_G = np.arange(len(piece_G)) // (SORTED_BATCHES * tasks_per_batch)
    by_length = piece_G[np.lexsort((length_G[piece_G], block_G))]
    groups = [by_length[i : i + tasks_per_batch] for i in range(0, len(by_length), tasks_per_batch)]
    return [np.concatenate([pieces[piece] for piece in groups[i]]) for i in rng.permutation(len(groups))]


def _piece_starts(task_C: np.ndarray, size: int) -> np.ndarray:
    """Where each piece begins, of sequences in the order of their tasks, `task_C`; a piece has at most `size`."""
    first_D = np.flatnonzero(np.diff(task_C, prepend=-1))
    place_C = np.arange(len(task_C)) - np.repeat(first_D, np.diff(first_D, append=len(task_C)))
    return np.flatnonzero(place_C % size == 0)


def num_training_batches(corpus: TokenizedCorpus, batch_size: int, tasks_per_batch: int | None) -> int:
    """Batches of an epoch."""
    train = corpus.sequences("train")
    if tasks_per_batch is None:
        return -(-len(train) // batch_size)
    return -(-len(_piece_starts(np.sort(corpus.task_C[train]), batch_size // tasks_per_batch)) // tasks_per_batch)


def fixed_batches(sequence_C: np.ndarray, batch_size: int, seed: int) -> list[np.ndarray]:
    """One pass over these sequences: those of each batch, in an order that `seed` decides, whatever their lengths.

    The order is that of `datasets.Dataset.shuffle(seed=seed)`.

    Args:
        sequence_C: The sequences of a split, in the order before the shuffle.
        batch_size: Sequences of a batch, at most.
        seed: `train.seed`.
    """
    shuffled_C = np.random.default_rng(seed).permutation(sequence_C)
    return [shuffled_C[i : i + batch_size] for i in range(0, len(shuffled_C), batch_size)]


def separate_batches(
    corpus: TokenizedCorpus, batch_size: int, seed: int, epoch: int, fits: np.ndarray, fit_K: np.ndarray | None = None
) -> list[np.ndarray]:
    """One epoch over the training split of separate fits: no fit's batches depend on another's texts.

    Each fit's sequences are shuffled by (seed, epoch, fit) and spread evenly over as many batches as `training_batches`
    makes of the whole split. Some batches are empty where few fits are left. Within `SORTED_BATCHES` batches the
    shorter sequences of a fit come first; then the batches are shuffled. So texts of similar length share a batch.

    Args:
        corpus: The tokenised text.
        batch_size: Sequences of a batch on average, if all fits are left.
        seed: With epoch and fit it decides the order.
        epoch: Counted from 1.
        fits: Indices of those that go on.
        fit_K: The fit of each task; None: each task is one.

    Returns:
        The sequences of each batch.
    """
    sequence_C, length_C = corpus.sequences("train"), np.diff(corpus.offsets)
    fit_C = corpus.task_C if fit_K is None else fit_K[corpus.task_C]
    by_fit = sequence_C[np.argsort(fit_C[sequence_C], kind="stable")]
    first, beyond = (np.searchsorted(fit_C[by_fit], fits, side) for side in ("left", "right"))
    num_batches = -(-len(sequence_C) // batch_size)
    batches: list[list[int]] = [[] for _ in range(num_batches)]
    for fit, start, end in zip(fits, first, beyond, strict=True):
        rng = np.random.default_rng([seed, epoch, fit])
        shuffled = rng.permutation(by_fit[start:end])
        batch_of = ((np.arange(len(shuffled)) + rng.random()) * num_batches / len(shuffled)).astype(int) % num_batches
        by_length = shuffled[np.lexsort((length_C[shuffled], batch_of // SORTED_BATCHES))]
        for n, batch in zip(by_length.tolist(), batch_of, strict=True):
            batches[batch].append(n)
    order = np.random.default_rng([seed, epoch]).permutation(num_batches)
    return [np.array(batches[i], dtype=np.int64) for i in order]


def batches_of_task(corpus: TokenizedCorpus, task: int, batch_size: int) -> int:
    """The number of batches of about `batch_size` sequences that `task_batches` makes of a task's training split."""
    return max(1, round(len(_training_sequences(corpus, task)) / batch_size))


def task_batches(
    corpus: TokenizedCorpus, batch_size: int, seed: int, epoch: int, tasks: np.ndarray
) -> list[np.ndarray]:
    """One epoch of `ADD_STEPS` steps of fits that know nothing of each other, not even how many there are.

    In each step a task has one of its own `batches_of_task`, one after the other and then anew, shuffled by (seed,
    pass). An epoch may end within a pass over a task's texts, and may hold several passes.

    Args:
        corpus: The tokenised text.
        batch_size: Sequences of a task in a step, on average.
        seed: With the number of the pass it decides the order.
        epoch: Counted from 1.
        tasks: Indices of the tasks that are still fitted.

    Returns:
        The sequences of each step.
    """
    steps = range((epoch - 1) * ADD_STEPS, epoch * ADD_STEPS)
    batches: list[list[np.ndarray]] = [[] for _ in steps]
    for task in tasks:
        sequence_C, num_batches = _training_sequences(corpus, task), batches_of_task(corpus, task, batch_size)
        order, parts = -1, list[np.ndarray]()
        for batch, number in zip(batches, steps, strict=True):
            if number // num_batches != order:
                order = number // num_batches
                parts = np.array_split(np.random.default_rng([seed, order]).permutation(sequence_C), num_batches)
            batch.append(parts[number % num_batches])
    return [np.concatenate(batch) if batch else np.array([], dtype=np.int64) for batch in batches]


def _training_sequences(corpus: TokenizedCorpus, task: int) -> np.ndarray:
    sequence_C = corpus.sequences("train")
    return sequence_C[corpus.task_C[sequence_C] == task]


def group_by_length(corpus: TokenizedCorpus, sequence_C: np.ndarray, limits: Sequence[int]) -> list[np.ndarray]:
    """These sequences in groups, the longest last, so that padding never lifts a row above a limit that it is below.

    Args:
        corpus: The tokenised text.
        sequence_C: Indices of sequences.
        limits: Lengths in tokens.
    """
    if not limits:
        return [sequence_C]
    group_C = np.searchsorted(limits, np.diff(corpus.offsets)[sequence_C])
    return [sequence_C[group_C == group] for group in np.unique(group_C)]


def forward_parts(
    corpus: TokenizedCorpus,
    sequence_B: np.ndarray,
    largest: int | None = None,
    pass_tokens: int | None = None,
    limits: Sequence[int] = (),
) -> list[np.ndarray]:
    """The sequences of a batch as the rows of one forward pass, or of several where one would be mostly padding.

    Args:
        corpus: The tokenised text.
        sequence_B: The sequences of the batch.
        largest: Most rows of a pass.
        pass_tokens: The fixed cost of a pass, in tokens (`bora_sweep.train.device.PASS_TOKENS`); None where unknown.
        limits: Lengths that padding must not cross, see `group_by_length`.

    Returns:
        The sequences of each pass.
    """
    groups = group_by_length(corpus, sequence_B, limits)
    return [part_B for group_B in groups for part_B in _cut_batch(corpus, group_B, largest, pass_tokens)]


def _cut_batch(
    corpus: TokenizedCorpus, sequence_B: np.ndarray, largest: int | None, pass_tokens: int | None
) -> list[np.ndarray]:
    """`forward_parts` of sequences that may be padded to each other's lengths.

    Rows are sorted by length and cut where that saves most padding, until `ENOUGH_FILLED` of a pass is not padding.
    Cutting stops earlier where a further pass would cost more than it saves: with `pass_tokens`, where a cut saves
    fewer tokens of padding; else where the parts have `MIN_PASS_ROWS` rows on average.
    """
    count = len(sequence_B)
    if count == 0:
        return []
    length_B = np.diff(corpus.offsets)[sequence_B]
    order = np.argsort(length_B, kind="stable")
    sorted_B, length_B, row_B = sequence_B[order], length_B[order], np.arange(count)
    cuts = np.append(np.arange(0, count, largest or count), count)
    while True:
        part_B = np.searchsorted(cuts, row_B, side="right")
        longest_B = length_B[cuts[part_B] - 1]
        shorter_B = row_B - cuts[part_B - 1]  # rows in the same part before this one
        saved_B = shorter_B * (longest_B - np.roll(length_B, 1))
        costs_more = len(cuts) > count // MIN_PASS_ROWS if pass_tokens is None else saved_B.max() < pass_tokens
        if costs_more or length_B.sum() >= ENOUGH_FILLED * longest_B.sum():
            return np.split(sorted_B, cuts[1:-1])
        cuts = np.sort(np.append(cuts, saved_B.argmax()))


def scoring_batches(
    corpus: TokenizedCorpus, sequence_C: np.ndarray, batch_size: int, limits: Sequence[int] = (), bucket: int = 1
) -> Iterator[TaskBatch]:
    """Batches of each sequence once, the longest first, so that a batch that does not fit in memory comes first.

    Args:
        corpus: The tokenised text.
        sequence_C: Indices of sequences.
        batch_size: Sequences of a batch, at most.
        limits: Lengths beyond which no shorter sequence is padded.
        bucket: Rows are padded to a multiple of so many tokens.
    """
    for group_C in reversed(group_by_length(corpus, sequence_C, limits)):
        order = np.argsort(-np.diff(corpus.offsets)[group_C], kind="stable")
        for i in range(0, len(order), batch_size):
            sequence_B = group_C[order[i : i + batch_size]]
            yield collate(corpus, sequence_B, width_of(corpus, sequence_B, bucket, limits))
