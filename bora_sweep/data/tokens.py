"""The corpus as token sequences.

Shapes: N documents, C sequences (one for each document, or for each chunk of one), B of either.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from bora_sweep.config import Config, DataConfig
from bora_sweep.data.chat import ChatFormat
from bora_sweep.data.corpus import Corpus, Form
from bora_sweep.data.encode import Encoder, placeholders
from bora_sweep.data.long_documents import (
    Document,
    Piece,
    chunks,
    cut,
    cut_text,
    notes_on_left_out,
    notes_on_length,
    refuse_untrained,
)
from bora_sweep.data.references import References
from bora_sweep.errors import InputError, plural


@dataclass(frozen=True)
class Chunks:
    """The document that each sequence is part of, where long documents are several sequences.

    The sequences of a document are neighbours, in order, and no document is without one.
    """

    document_C: np.ndarray
    """The document, a row of `TokenizedCorpus.documents`."""
    shift_C: np.ndarray
    """Where the sequence is in its document: token i is token shift + i, see `long_documents.Piece`."""


@dataclass(frozen=True)
class TokenizedCorpus:
    """A corpus as arrays, so that worker processes can share one copy of it.

    `documents` has one row per document. Its columns are task (the index in `tasks`), split, document_id,
    floor_nll_nats, num_tokens (scored tokens) and was_cut. Sequence c is `tokens[offsets[c] : offsets[c + 1]]`. It is
    document c, or with `chunks` a part of a document. What trains and scores takes sequences; splits, sums and scores
    are of documents.
    """

    name: str
    tasks: tuple[str, ...]
    documents: pd.DataFrame
    tokens: np.ndarray
    scored: np.ndarray
    """Whether each of `tokens` is scored. The first one of a sequence is not, and its last one is."""
    offsets: np.ndarray
    padding: int = 0
    """The token that rows are padded with: the end token, which matters only where padding is scored."""
    notes: tuple[str, ...] = ()
    """What was left out, and what the tokenizer does not know."""
    form: Form = "text"
    """What documents are."""
    references: References | None = None
    """The answers that metrics compare with; None without metrics."""
    chunks: Chunks | None = None
    """Of which document each sequence is a part; None: sequence n is document n."""
    groups: tuple[str, ...] = ()
    """Names of the groups of tasks, by name; empty where there are none."""
    group_K: np.ndarray | None = None
    """The group of each task, a place in `groups`; None where there are none."""
    cut_token_fraction: float = 0.0
    """Share of all tokens that cutting lost, and leaving out documents whose prompt is too long."""

    @property
    def num_tasks(self) -> int:
        """D, the number of tasks."""
        return len(self.tasks)

    @property
    def group_of(self) -> dict[str, str]:
        """The name of each task's group; empty where there are none."""
        return (
            {} if self.group_K is None else {t: self.groups[g] for t, g in zip(self.tasks, self.group_K, strict=True)}
        )

    @property
    def largest_token(self) -> int:
        """The largest token in any document."""
        return int(self.tokens.max())

    @property
    def shortest(self) -> int:
        """Tokens of the shortest sequence."""
        return int(np.diff(self.offsets).min())

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return int(np.diff(self.offsets).max())

    def split(self, name: str) -> np.ndarray:
        """The indices of a split's documents, in the corpus's order."""
        return np.flatnonzero(self.documents["split"] == name)

    def sequences(self, split: str) -> np.ndarray:
        """The indices of the sequences of a split's documents, in order."""
        document_N = self.split(split)
        return document_N if self.chunks is None else np.flatnonzero(np.isin(self.chunks.document_C, document_N))

    def document_of(self, sequence_B: np.ndarray) -> np.ndarray:
        """The document of each of these sequences."""
        return sequence_B if self.chunks is None else self.chunks.document_C[sequence_B]

    def first_sequence(self, document_B: np.ndarray) -> np.ndarray:
        """The first sequence of each of these documents; of the number of documents, the number of sequences."""
        return document_B if self.chunks is None else np.searchsorted(self.chunks.document_C, document_B)

    @cached_property
    def task_C(self) -> np.ndarray:
        """The task of each sequence."""
        return self.documents["task"].to_numpy()[self.document_of(np.arange(len(self.offsets) - 1))]

    @cached_property
    def num_tokens_C(self) -> np.ndarray:
        """Scored tokens of each sequence."""
        if self.chunks is None:
            return self.documents["num_tokens"].to_numpy()
        return np.add.reduceat(self.scored, self.offsets[:-1], dtype=np.int64)

    def sum_by_document(self, value_C: np.ndarray) -> np.ndarray:
        """The sum over the sequences of each document, along the last axis."""
        if self.chunks is None:
            return value_C
        return np.add.reduceat(value_C, self.first_sequence(np.arange(len(self.documents))), axis=-1)

    def scored_places(self, document: int) -> np.ndarray:
        """The places of a document's scored tokens among its tokens, also where these are in several sequences."""
        first, last = self.first_sequence(np.array([document, document + 1])).tolist()
        shift_C = np.zeros(last, dtype=np.int64) if self.chunks is None else self.chunks.shift_C
        of_sequence = [self.scored[self.offsets[c] : self.offsets[c + 1]] for c in range(first, last)]
        return np.concatenate([
            shift + np.flatnonzero(scored) for shift, scored in zip(shift_C[first:last], of_sequence, strict=True)
        ])  # fmt: skip

    def num_tokens(self, split: str) -> int:
        """Scored tokens of a split; for the training split this is the N of the objective."""
        return int(self.documents.loc[self.documents["split"] == split, "num_tokens"].sum())

    def table(self) -> pd.DataFrame:
        """Number of documents and scored tokens, by task and split."""
        named = self.documents.assign(task=np.asarray(self.tasks, dtype=object)[self.documents["task"]])
        return named.groupby(["task", "split"], as_index=False, sort=False).agg(
            num_documents=("num_tokens", "size"), num_tokens=("num_tokens", "sum")
        )


def tokenize(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    *,
    max_text_tokens: int | None = None,
    overlap: int | None = None,
    data: DataConfig | None = None,
) -> TokenizedCorpus:
    """Each document as a sequence, or as several: what is given, then what is scored with its end token.

    Running text begins with the start symbol, or with `data.prompt` where that names no column. A prompt of the row
    follows the tokens that the tokenizer itself prepends. A conversation is what its chat template writes
    (`bora_sweep.data.chat`).

    Args:
        corpus: The documents.
        tokenizer: Control marks within a text or a task's name are encoded as characters.
        max_tokens: Most tokens of a sequence. A text is cut so that its end token stays. What follows a prompt is cut
            at its end, or its prompt at the left, as `data.truncate` says; a document without anything left that is
            scored is left out.
        max_text_tokens: Most tokens of a text. The whole is then cut at `max_tokens`, also the end token.
        overlap: Nothing is cut: a longer document becomes chunks (`bora_sweep.data.long_documents`) that overlap by so
            many tokens. None: it is cut.
        data: `prompt`, `template`, `truncate` and the chat template; None: the defaults.

    Raises:
        InputError: The tokenizer has no end token, it makes control tokens of a text, a prompt leaves no room for text,
            a chat template refuses a conversation, or a task has no document left to train on.
    """
    data, encoder = data or DataConfig(), Encoder(tokenizer)
    whole_N = _whole_documents(corpus, encoder, data, max_tokens)
    if overlap is not None:
        pieces_N = [chunks(document, max_tokens, overlap) for document in whole_N]
    elif corpus.form == "text":
        pieces_N = [[cut_text(document, max_tokens, max_text_tokens)] for document in whole_N]
    else:
        pieces_N = [cut(document, max_tokens, data.truncate) for document in whole_N]
    is_kept = np.array([len(pieces) > 0 for pieces in pieces_N])
    refuse_untrained(corpus, is_kept, max_tokens)
    pieces_C = [piece for pieces in pieces_N for piece in pieces]
    documents = corpus.documents.loc[is_kept].drop(columns=["prompt", "text", "content"], errors="ignore")
    kept = [(whole, pieces) for whole, pieces in zip(whole_N, pieces_N, strict=True) if pieces]
    was_cut = [overlap is None and len(pieces[0].tokens) < len(whole.tokens) for whole, pieces in kept]
    documents = documents.assign(
        task=pd.Categorical(documents["task"], categories=list(corpus.tasks)).codes.astype(np.int64),
        num_tokens=[sum(int(np.count_nonzero(piece.scored)) for piece in pieces) for _, pieces in kept],
        was_cut=was_cut,
        # The floor is known for whole documents only.
        floor_nll_nats=documents["floor_nll_nats"].mask(was_cut),
    )
    tokens = np.concatenate([np.array(piece.tokens, dtype=np.int32) for piece in pieces_C])
    num_whole = sum(len(document.tokens) for document in whole_N)
    lost = 0.0 if overlap is not None else 1 - len(tokens) / num_whole
    unknown, groups = tokenizer.unk_token_id, sorted(set(corpus.groups))
    num_unknown = 0 if unknown in (None, encoder.start[0], encoder.end) else int((tokens == unknown).sum())
    return TokenizedCorpus(
        name=corpus.name,
        tasks=corpus.tasks,
        documents=documents.reset_index(drop=True),
        tokens=tokens,
        scored=np.concatenate([piece.scored for piece in pieces_C]),
        offsets=np.concatenate([[0], np.cumsum([len(piece.tokens) for piece in pieces_C])]),
        padding=encoder.end,
        form=corpus.form,
        chunks=None if overlap is None else _chunks([pieces for _, pieces in kept]),
        groups=tuple(groups),
        group_K=np.array([groups.index(group) for group in corpus.groups]) if groups else None,
        cut_token_fraction=lost,
        notes=(
            *(ChatFormat(encoder, data).notes if corpus.form == "conversation" else []),
            *notes_on_left_out(corpus, is_kept, max_tokens),
            *notes_on_length(max_tokens, lost, sum(was_cut), [len(pieces) for pieces in pieces_N]),
            *_notes_on_unknown(num_unknown, len(tokens)),
        ),
    )


def _chunks(pieces_N: list[list[Piece]]) -> Chunks:
    return Chunks(
        document_C=np.repeat(np.arange(len(pieces_N)), [len(pieces) for pieces in pieces_N]),
        shift_C=np.array([piece.shift for pieces in pieces_N for piece in pieces], dtype=np.int64),
    )


def tokenize_for(config: Config, corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> TokenizedCorpus:
    """`tokenize` with the settings of `config`, and the answers that its metrics compare with."""
    from bora_sweep.data.answers import make_references

    model = config.model
    tokenized = tokenize(
        corpus, tokenizer, model.max_tokens, max_text_tokens=model.max_text_tokens, overlap=model.overlap,
        data=config.data,
    )  # fmt: skip
    if not config.metrics:
        return tokenized
    return replace(tokenized, references=make_references(config, corpus, tokenized, tokenizer))


def given_tokens(encoder: Encoder, data: DataConfig, values_N: Sequence[Mapping[str, str]]) -> list[list[int]]:
    """The tokens that plain documents begin with, before what is scored.

    Args:
        encoder: Of the tokenizer.
        data: `prompt`.
        values_N: Of the placeholders of `data.prompt`; `prompt` is the row's own prompt, where it has one.
    """
    template = data.prompt if data.prompt is not None else "{prompt}" if "prompt" in values_N[0] else None
    if template is None:
        return [encoder.start] * len(values_N)
    tokens_N = encoder.encode(template, values_N)
    if placeholders(template) <= {"task"}:
        return tokens_N
    first = encoder.prepended
    tokens_N = [tokens if tokens[: len(first)] == first else [*first, *tokens] for tokens in tokens_N]
    return [tokens or encoder.start for tokens in tokens_N]


def placeholder_values(data: DataConfig, task: str, text: str, content: Mapping[str, Any] | None) -> dict[str, str]:
    """The values of the placeholders of `data.prompt` and `data.template`, for a plain document."""
    columns = {name: value for name, value in (content or {}).items() if isinstance(value, str)}
    return {**dict.fromkeys(placeholders(data.template), text), **columns, "task": task}


def _whole_documents(corpus: Corpus, encoder: Encoder, data: DataConfig, max_tokens: int) -> list[Document]:
    """Each document before any cut."""
    if corpus.form == "conversation":
        return _conversations(corpus, encoder, data)
    values, bodies = _bodies(corpus, encoder, data)
    if corpus.form == "text":
        prefixes = given_tokens(encoder, data, [{"task": task} for task in corpus.tasks])
        prefix_of = dict(zip(corpus.tasks, prefixes, strict=True))
        _check_prompts(prefix_of, max_tokens)
        prefixes = [prefix_of[task] for task in corpus.documents["task"]]
    else:  # both are encoded apart, as a server has the prompt alone
        prefixes = given_tokens(encoder, data, values)
    return [
        _document(encoder, [*prefix, *body, encoder.end], np.arange(len(prefix) + len(body) + 1) >= len(prefix))
        for prefix, body in zip(prefixes, bodies, strict=True)
    ]


def _conversations(corpus: Corpus, encoder: Encoder, data: DataConfig) -> list[Document]:
    """Conversations as the chat template writes them."""
    documents = corpus.documents
    pairs = zip(documents["document_id"], documents["task"], strict=True)
    names = [f"document {document!r} of task {task!r}" for document, task in pairs]
    encoded = ChatFormat(encoder, data).encode(documents["content"].tolist(), names)
    return [_document(encoder, tokens, scored) for tokens, scored in encoded]


def _document(encoder: Encoder, tokens: list[int], scored: np.ndarray) -> Document:
    first = encoder.prepended
    return Document(len(first) if tokens[: len(first)] == first else 0, tokens, scored)


def _bodies(corpus: Corpus, encoder: Encoder, data: DataConfig) -> tuple[list[dict[str, str]], list[list[int]]]:
    """The values of the placeholders of each document, and the tokens of what is scored without the end token."""
    rows = corpus.documents[["task", "text", "content"]].itertuples(index=False)
    values = [placeholder_values(data, *row) for row in rows]
    return values, encoder.encode(data.template, values)


def _notes_on_unknown(num_unknown: int, num_tokens: int) -> list[str]:
    if not num_unknown:
        return []
    share = f"{num_unknown:,} of {plural(num_tokens, 'token')}"
    return [f"{share} stand for text that the tokenizer does not know; perplexities do not tell its words apart"]


def token_notes(corpus: TokenizedCorpus) -> list[str]:
    """Notes on suspicious tokens: unknown ones, none in a document, or those of a training document."""
    documents = corpus.documents
    num_N = documents["num_tokens"].to_numpy()
    is_text = corpus.form == "text"
    # Equal documents have equal chunks.
    bounds = corpus.offsets[corpus.first_sequence(np.arange(len(documents) + 1))]
    sequences = [(corpus.tokens[start:end], corpus.scored[start:end]) for start, end in pairwise(bounds)]
    text_N = [(tokens[scored] if is_text else tokens).tobytes() for tokens, scored in sequences]
    is_trained_N = (documents["split"] == "train").to_numpy()
    trained = {text for text, is_trained in zip(text_N, is_trained_N, strict=True) if is_trained}
    empty = int((num_N <= 1).sum())
    leaked = sum(text in trained for text, is_trained in zip(text_N, is_trained_N, strict=True) if not is_trained)
    notes = [f"{plural(empty, 'document')} with no token but the end token"] if empty and is_text else []
    notes += corpus.notes
    if leaked:
        notes.append(f"{plural(leaked, 'document')} of validation and test with the same tokens as a training document")
    return notes


def _check_prompts(prefix_of: dict[str, list[int]], max_tokens: int) -> None:
    """Refuse a prompt, or start symbol, that is empty or leaves no room for text."""
    task = max(prefix_of, key=lambda task: len(prefix_of[task]))
    if len(prefix_of[task]) + 2 > max_tokens:
        raise InputError(
            f"model.max_tokens={max_tokens}: the prompt or start symbol has {len(prefix_of[task])} tokens for task "
            f"{task!r}, which leaves no room for text and end token; raise it, or shorten data.prompt"
        )
    if not all(prefix_of.values()):
        raise InputError("data.prompt: has no tokens, so nothing begins a document; write something, or drop it")
