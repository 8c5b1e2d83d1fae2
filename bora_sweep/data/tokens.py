"""Token sequences of a corpus, and the batches that mix its tasks.

Shapes: N documents, B rows, T tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from bora_sweep.data.corpus import Corpus
from bora_sweep.errors import InputError

PADDING = 0  # any token will do: padding stands to the right of every token that is scored
FILLED, SMALLEST_PART = 0.95, 8
SORTED_BATCHES = 32  # batches whose documents are sorted by length among themselves before they are cut


@dataclass(frozen=True)
class TokenizedCorpus:
    """A corpus as arrays, so that worker processes can share one copy of it.

    `documents` has a row per document: task (its place in `tasks`), split, document_id, floor_nll_nats, num_tokens
    (scored ones), was_cut. Document n's sequence is `tokens[offsets[n] : offsets[n + 1]]`.
    """

    name: str
    tasks: tuple[str, ...]
    documents: pd.DataFrame
    tokens: np.ndarray
    offsets: np.ndarray

    @property
    def num_tasks(self) -> int:
        """D."""
        return len(self.tasks)

    @property
    def largest_token(self) -> int:
        """The largest token in any document."""
        return int(self.tokens.max())

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return int(np.diff(self.offsets).max())

    def split(self, name: str) -> np.ndarray:
        """The documents of a split, in the corpus's order."""
        return np.flatnonzero(self.documents["split"] == name)

    def num_tokens(self, split: str) -> int:
        """Scored tokens of a split; N of the objective for the training split."""
        return int(self.documents.loc[self.documents["split"] == split, "num_tokens"].sum())

    def table(self) -> pd.DataFrame:
        """Documents, scored tokens and cut documents by task and split."""
        named = self.documents.assign(task=np.asarray(self.tasks, dtype=object)[self.documents["task"]])
        return named.groupby(["task", "split"], as_index=False, sort=False).agg(
            num_documents=("num_tokens", "size"), num_tokens=("num_tokens", "sum"), num_cut_documents=("was_cut", "sum")
        )


@dataclass(frozen=True)
class TaskBatch:
    """Rows of several tasks, padded on the right to the longest."""

    document_B: np.ndarray
    task_B: np.ndarray
    length_B: np.ndarray
    tokens_BT: np.ndarray

    @property
    def num_tokens(self) -> int:
        """Scored tokens: all of a row but its start symbol."""
        return int(self.length_B.sum()) - len(self.length_B)


def tokenize(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> TokenizedCorpus:
    """Each document as start symbol, text, end token; the text is cut so that the whole has at most `max_tokens`.

    Raises:
        InputError: The tokenizer has no end token.
    """
    start, end = boundary_tokens(tokenizer)
    texts = corpus.documents["text"].tolist()
    bodies = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    kept = [body[: max_tokens - 2] for body in bodies]
    lengths = np.array([len(body) + 2 for body in kept])
    was_cut = np.array([len(body) for body in bodies]) + 2 > lengths
    documents = corpus.documents.drop(columns="text").assign(
        task=pd.Categorical(corpus.documents["task"], categories=list(corpus.tasks)).codes.astype(np.int64),
        num_tokens=lengths - 1,
        was_cut=was_cut,
        # What a cut document is worth under the true source is not known.
        floor_nll_nats=corpus.documents["floor_nll_nats"].mask(was_cut),
    )
    return TokenizedCorpus(
        name=corpus.name,
        tasks=corpus.tasks,
        documents=documents.reset_index(drop=True),
        tokens=np.concatenate([np.array([start, *body, end], dtype=np.int32) for body in kept]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
    )


def boundary_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """(start symbol, end token): what the tokenizer prepends, else its BOS, else its EOS; and its EOS."""
    end, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    if not isinstance(end, int):
        raise InputError(f"{tokenizer.name_or_path}: the tokenizer has no end token; set its eos_token")
    prepended = list(tokenizer("")["input_ids"])
    return (prepended[0] if prepended else bos if isinstance(bos, int) else end), end


def collate(corpus: TokenizedCorpus, document_B: np.ndarray) -> TaskBatch:
    """The batch of these documents."""
    starts = corpus.offsets[document_B]
    length_B = corpus.offsets[document_B + 1] - starts
    tokens_BT = np.full((len(document_B), length_B.max()), PADDING, dtype=np.int64)
    for row, (start, length) in enumerate(zip(starts, length_B, strict=True)):
        tokens_BT[row, :length] = corpus.tokens[start : start + length]
    task_B = corpus.documents["task"].to_numpy()[document_B]
    return TaskBatch(document_B, task_B, length_B, tokens_BT)


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


def separate_batches(
    corpus: TokenizedCorpus, batch_size: int, seed: int, epoch: int, tasks: np.ndarray
) -> list[np.ndarray]:
    """The training split of `tasks` once, for fits that share nothing: a task's batches do not depend on other texts.

    Each task's documents are shuffled by (seed, epoch, task) and spread evenly over as many batches as
    `training_batches` makes of the whole split, some of them empty where few tasks are left.
    """
    document_N, task_N = corpus.split("train"), corpus.documents["task"].to_numpy()
    num_batches = -(-len(document_N) // batch_size)
    batches: list[list[int]] = [[] for _ in range(num_batches)]
    for task in tasks:
        rng = np.random.default_rng([seed, epoch, task])
        own = rng.permutation(document_N[task_N[document_N] == task])
        place = (np.arange(len(own)) + rng.random()) * num_batches / len(own)
        for n, batch in zip(own.tolist(), place.astype(int) % num_batches, strict=True):
            batches[batch].append(n)
    return [np.array(batch, dtype=np.int64) for batch in batches]


def forward_parts(corpus: TokenizedCorpus, document_B: np.ndarray, largest: int | None = None) -> list[np.ndarray]:
    """A batch's documents as the rows of one forward pass, or of several where too much of one would be padding.

    Sorted by length and halved until `FILLED` of what passes through the model is not padding, down to `SMALLEST_PART`
    rows; `largest` bounds the rows of each.
    """
    length_N = np.diff(corpus.offsets)
    sorted_B = document_B[np.argsort(length_N[document_B], kind="stable")]
    size = max(1, min(largest or len(sorted_B), len(sorted_B)))
    while True:
        parts = [sorted_B[i : i + size] for i in range(0, len(sorted_B), size)]
        padded = sum(len(part) * length_N[part[-1]] for part in parts)
        if size <= SMALLEST_PART or length_N[document_B].sum() >= FILLED * padded:
            return parts
        size = max(SMALLEST_PART, -(-size // 2))


def scoring_batches(corpus: TokenizedCorpus, document_N: np.ndarray, batch_size: int) -> Iterator[TaskBatch]:
    """Each document once, the longest first, so that a batch that does not fit in memory is the first."""
    order = np.argsort(-np.diff(corpus.offsets)[document_N], kind="stable")
    for i in range(0, len(order), batch_size):
        yield collate(corpus, document_N[order[i : i + batch_size]])
