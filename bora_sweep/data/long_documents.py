"""What becomes of a document with more than `model.max_tokens`: it is cut, or it becomes several sequences, its chunks.

Every scored token of a document is scored in exactly one of its chunks, also its end token. The first chunk is the
document's first `max_tokens`. A later one is what the tokenizer itself prepends, then a window of the document: first
`overlap` tokens that the chunk before has scored or was given, and are now given, then new ones.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from bora_sweep.data.corpus import Corpus
from bora_sweep.errors import InputError, and_more, percentage, plural


@dataclass(frozen=True)
class Document:
    """A document's tokens before any cut."""

    start: int
    """Tokens at the beginning that each of its sequences has: the start symbol, where the tokenizer prepends it."""
    tokens: list[int]
    scored: np.ndarray
    """Whether each of `tokens` is scored. The last one is."""

    @property
    def given(self) -> int:
        """Tokens before the first that is scored."""
        return int(self.scored.argmax())


@dataclass(frozen=True)
class Piece:
    """A sequence that is made of a document."""

    tokens: list[int]
    scored: np.ndarray
    shift: int = 0
    """Of a chunk: its token i is token shift + i of the document, but for the start symbol."""


def cut_text(document: Document, max_tokens: int, max_text_tokens: int | None) -> Piece:
    """Running text, cut so that its end token stays; with `max_text_tokens` the whole is then cut at `max_tokens`."""
    tokens, given = document.tokens, document.given
    room = max_tokens - given - 1 if max_text_tokens is None else max_text_tokens
    kept = [*tokens[: min(given + room, len(tokens) - 1)], tokens[-1]][:max_tokens]
    return Piece(kept, np.arange(len(kept)) >= given)


def cut(document: Document, max_tokens: int, truncate: Literal["end", "prompt"]) -> list[Piece]:
    """A document with a prompt, cut as `data.truncate` says; none where nothing that is scored is left."""
    tokens, scored = document.tokens, document.scored
    beyond = len(tokens) - max_tokens
    if beyond <= 0:
        return [Piece(tokens, scored)]
    if truncate == "prompt":
        dropped = slice(document.start, document.start + min(beyond, document.given - max(document.start, 1)))
        tokens, scored = tokens[: dropped.start] + tokens[dropped.stop :], np.delete(scored, dropped)
    return _up_to_last_scored(tokens[:max_tokens], scored[:max_tokens])


def chunks(document: Document, max_tokens: int, overlap: int) -> list[Piece]:
    """The chunks of a document, without those in which nothing is scored.

    Args:
        document: The document.
        max_tokens: Most tokens of a chunk.
        overlap: Tokens of the document that a later chunk begins with and that are not scored in it; at least 1.

    Raises:
        InputError: A later chunk has no room for new tokens.
    """
    tokens, scored, start = document.tokens, document.scored, document.start
    room = max_tokens - start - overlap
    if room < 1:
        raise InputError(
            f"model.chunk_overlap={overlap}: with {start} tokens that the tokenizer prepends it fills "
            f"model.max_tokens={max_tokens}; lower it"
        )
    pieces = _up_to_last_scored(tokens[:max_tokens], scored[:max_tokens])
    for new in range(max_tokens, len(tokens), room):
        window = [*tokens[:start], *tokens[new - overlap : new + room]]
        is_scored = np.append(np.zeros(start + overlap, dtype=bool), scored[new : new + room])
        pieces += _up_to_last_scored(window, is_scored, shift=new - overlap - start)
    return pieces


def _up_to_last_scored(tokens: list[int], scored: np.ndarray, shift: int = 0) -> list[Piece]:
    """The sequence without the tokens after the last that is scored; none where no token is."""
    if not scored.any():
        return []
    last = int(np.flatnonzero(scored)[-1]) + 1
    return [Piece(tokens[:last], scored[:last], shift)]


def refuse_untrained(corpus: Corpus, is_kept: np.ndarray, max_tokens: int) -> None:
    """Refuse to leave out all training documents of a task, or a whole split."""
    mend = "raise it, or set data.truncate=prompt or model.long_documents=chunk"
    documents, kept = corpus.documents, corpus.documents.loc[is_kept]
    trained = set(kept.loc[kept["split"] == "train", "task"])
    untrained = set(documents.loc[documents["split"] == "train", "task"]) - trained
    if lost := [task for task in corpus.tasks if task in untrained]:
        raise InputError(
            f"model.max_tokens={max_tokens}: the prompts of all training documents of task {lost[0]!r}{and_more(lost)} "
            f"are longer, so that nothing is left to learn; {mend}"
        )
    for split in sorted(set(documents["split"]) - set(kept["split"])):
        raise InputError(f"model.max_tokens={max_tokens}: the prompts of all {split} documents are longer; {mend}")


def notes_on_left_out(corpus: Corpus, is_kept: np.ndarray, max_tokens: int) -> list[str]:
    """A note on documents that are left out because their prompt alone is too long."""
    if is_kept.all():
        return []
    left_out = corpus.documents.loc[~is_kept].iloc[0]
    first = f"the first is {left_out['document_id']!r} of task {left_out['task']!r}"
    return [
        f"{plural(int((~is_kept).sum()), 'document')} whose prompt alone has model.max_tokens={max_tokens} or more "
        f"left out ({first}); data.truncate=prompt cuts the prompt instead"
    ]


def notes_on_length(max_tokens: int, lost: float, num_cut: int, num_pieces_N: list[int]) -> list[str]:
    """A note on what cutting lost, or on the chunks that documents became.

    Args:
        max_tokens: Most tokens of a sequence.
        lost: Share of all tokens that cutting and leaving out lost.
        num_cut: Documents that were cut.
        num_pieces_N: Sequences of each document; 0 where it is left out.
    """
    left_out, long = num_pieces_N.count(0), [number for number in num_pieces_N if number > 1]
    limit, notes = f"longer than model.max_tokens={max_tokens}", []
    if lost:
        notes.append(
            f"{plural(num_cut + left_out, 'document')} {limit} cut{' or left out' if left_out else ''}: "
            f"{percentage(lost)} of all tokens are lost; model.long_documents=chunk keeps them all, a larger "
            "model.max_tokens more of them"
        )
    if long:
        notes.append(f"{plural(len(long), 'document')} {limit} read as {plural(sum(long), 'chunk')}")
    return notes
