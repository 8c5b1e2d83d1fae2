"""The corpus as token sequences.

Shapes: N documents, B rows, T tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from bora_sweep.config import Config, DataConfig
from bora_sweep.data.chat import ChatFormat
from bora_sweep.data.corpus import Corpus, Form
from bora_sweep.data.encode import Encoder, placeholders
from bora_sweep.data.references import References
from bora_sweep.errors import InputError, plural


@dataclass(frozen=True)
class TokenizedCorpus:
    """A corpus as arrays, so that worker processes can share one copy of it.

    `documents` has one row per document. Its columns are task (the index in `tasks`), split, document_id,
    floor_nll_nats, num_tokens (scored tokens) and was_cut. The sequence of document n is `tokens[offsets[n] :
    offsets[n + 1]]`.
    """

    name: str
    tasks: tuple[str, ...]
    documents: pd.DataFrame
    tokens: np.ndarray
    scored: np.ndarray
    """Whether each of `tokens` is scored. The first one of a document is not, and its last one is."""
    offsets: np.ndarray
    padding: int = 0
    """The token that rows are padded with: the end token, which matters only where padding is scored."""
    notes: tuple[str, ...] = ()
    """What was left out, and what the tokenizer does not know."""
    form: Form = "text"
    """What documents are."""
    references: References | None = None
    """The answers that metrics compare with; None without metrics."""

    @property
    def num_tasks(self) -> int:
        """D, the number of tasks."""
        return len(self.tasks)

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

    def num_tokens(self, split: str) -> int:
        """Scored tokens of a split; for the training split this is the N of the objective."""
        return int(self.documents.loc[self.documents["split"] == split, "num_tokens"].sum())

    def table(self) -> pd.DataFrame:
        """Number of documents, scored tokens and cut documents, by task and split."""
        named = self.documents.assign(task=np.asarray(self.tasks, dtype=object)[self.documents["task"]])
        return named.groupby(["task", "split"], as_index=False, sort=False).agg(
            num_documents=("num_tokens", "size"), num_tokens=("num_tokens", "sum"), num_cut_documents=("was_cut", "sum")
        )


@dataclass(frozen=True)
class _Sequence:
    """A document's tokens before any cut."""

    start: int
    """Tokens at the beginning that a cut prompt keeps: the start symbol."""
    tokens: list[int]
    scored: np.ndarray

    @property
    def given(self) -> int:
        """Tokens before the first that is scored."""
        return int(self.scored.argmax())


def tokenize(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    *,
    max_text_tokens: int | None = None,
    data: DataConfig | None = None,
) -> TokenizedCorpus:
    """Each document as a sequence: what is given, then what is scored with its end token.

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
        data: `prompt`, `template`, `truncate` and the chat template; None: the defaults.

    Raises:
        InputError: The tokenizer has no end token, it makes control tokens of a text, a prompt leaves no room for text,
            a chat template refuses a conversation, or a task has no document left to train on.
    """
    data, encoder = data or DataConfig(), Encoder(tokenizer)
    if corpus.form == "text":
        cuts = _texts(corpus, encoder, data, max_tokens, max_text_tokens)
    else:
        read = _conversations if corpus.form == "conversation" else _prompts_and_completions
        cuts = [_cut(sequence, max_tokens, data.truncate) for sequence in read(corpus, encoder, data)]
    is_kept = np.array([cut is not None for cut in cuts])
    kept = [cut for cut in cuts if cut is not None]
    _refuse_untrained(corpus, is_kept, max_tokens)
    lengths = np.array([len(tokens) for tokens, _, _ in kept])
    documents = corpus.documents.loc[is_kept].drop(columns=["prompt", "text", "content"], errors="ignore")
    was_cut = [was_cut for *_, was_cut in kept]
    documents = documents.assign(
        task=pd.Categorical(documents["task"], categories=list(corpus.tasks)).codes.astype(np.int64),
        num_tokens=[int(np.count_nonzero(scored)) for _, scored, _ in kept],
        was_cut=was_cut,
        # The floor is known for whole documents only.
        floor_nll_nats=documents["floor_nll_nats"].mask(was_cut),
    )
    tokens = np.concatenate([np.array(tokens, dtype=np.int32) for tokens, *_ in kept])
    unknown = tokenizer.unk_token_id
    num_unknown = 0 if unknown in (None, encoder.start[0], encoder.end) else int((tokens == unknown).sum())
    return TokenizedCorpus(
        name=corpus.name,
        tasks=corpus.tasks,
        documents=documents.reset_index(drop=True),
        tokens=tokens,
        scored=np.concatenate([scored for _, scored, _ in kept]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        padding=encoder.end,
        form=corpus.form,
        notes=(
            *(ChatFormat(encoder, data).notes if corpus.form == "conversation" else []),
            *_notes_on_cuts(corpus, is_kept, max_tokens),
            *_notes_on_unknown(num_unknown, len(tokens)),
        ),
    )


def tokenize_for(config: Config, corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> TokenizedCorpus:
    """`tokenize` with the settings of `config`, and the answers that its metrics compare with."""
    from bora_sweep.data.answers import make_references

    limits = {"max_tokens": config.model.max_tokens, "max_text_tokens": config.model.max_text_tokens}
    tokenized = tokenize(corpus, tokenizer, **limits, data=config.data)
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


def _texts(
    corpus: Corpus, encoder: Encoder, data: DataConfig, max_tokens: int, max_text_tokens: int | None
) -> list[tuple[list[int], np.ndarray, bool]]:
    """Running text: tokens, which of them are scored, and whether the text was cut."""
    prefixes = given_tokens(encoder, data, [{"task": task} for task in corpus.tasks])
    prefix_of = dict(zip(corpus.tasks, prefixes, strict=True))
    _check_prompts(prefix_of, max_tokens)
    cuts = []
    for task, body in zip(corpus.documents["task"], _bodies(corpus, encoder, data)[1], strict=True):
        prefix = prefix_of[task]
        kept = body[: max_tokens - len(prefix) - 1 if max_text_tokens is None else max_text_tokens]
        tokens = [*prefix, *kept, encoder.end][:max_tokens]
        cuts.append((tokens, np.arange(len(tokens)) >= len(prefix), len(tokens) < len(prefix) + len(body) + 1))
    return cuts


def _prompts_and_completions(corpus: Corpus, encoder: Encoder, data: DataConfig) -> list[_Sequence]:
    """Prompts and completions. Both are encoded apart, as a server has the prompt alone."""
    values, bodies = _bodies(corpus, encoder, data)
    prefixes = given_tokens(encoder, data, values)
    return [
        _sequence(encoder, [*prefix, *body, encoder.end], np.arange(len(prefix) + len(body) + 1) >= len(prefix))
        for prefix, body in zip(prefixes, bodies, strict=True)
    ]


def _conversations(corpus: Corpus, encoder: Encoder, data: DataConfig) -> list[_Sequence]:
    """Conversations as the chat template writes them."""
    documents = corpus.documents
    pairs = zip(documents["document_id"], documents["task"], strict=True)
    names = [f"document {document!r} of task {task!r}" for document, task in pairs]
    encoded = ChatFormat(encoder, data).encode(documents["content"].tolist(), names)
    return [_sequence(encoder, tokens, scored) for tokens, scored in encoded]


def _sequence(encoder: Encoder, tokens: list[int], scored: np.ndarray) -> _Sequence:
    first = encoder.prepended
    return _Sequence(len(first) if tokens[: len(first)] == first else 0, tokens, scored)


def _bodies(corpus: Corpus, encoder: Encoder, data: DataConfig) -> tuple[list[dict[str, str]], list[list[int]]]:
    """The values of the placeholders of each document, and the tokens of what is scored without the end token."""
    rows = corpus.documents[["task", "text", "content"]].itertuples(index=False)
    values = [placeholder_values(data, *row) for row in rows]
    return values, encoder.encode(data.template, values)


def _cut(
    sequence: _Sequence, max_tokens: int, truncate: Literal["end", "prompt"]
) -> tuple[list[int], np.ndarray, bool] | None:
    """Tokens, which of them are scored, and whether they were cut; None where nothing that is scored is left."""
    tokens, scored = sequence.tokens, sequence.scored
    beyond = len(tokens) - max_tokens
    if beyond <= 0:
        return tokens, scored, False
    if truncate == "prompt":
        dropped = slice(sequence.start, sequence.start + min(beyond, sequence.given - max(sequence.start, 1)))
        tokens, scored = tokens[: dropped.start] + tokens[dropped.stop :], np.delete(scored, dropped)
    scored = scored[:max_tokens]
    if not scored.any():
        return None
    last = int(np.flatnonzero(scored)[-1]) + 1
    return tokens[:last], scored[:last], True


def _refuse_untrained(corpus: Corpus, is_kept: np.ndarray, max_tokens: int) -> None:
    """Refuse to leave out all training documents of a task, or a whole split."""
    mend = "raise it, or set data.truncate=prompt"
    documents, kept = corpus.documents, corpus.documents.loc[is_kept]
    trained = set(kept.loc[kept["split"] == "train", "task"])
    before = documents.loc[documents["split"] == "train", "task"]
    if lost := [task for task in corpus.tasks if task in set(before) - trained]:
        more = f" (and {plural(len(lost) - 1, 'task')} more)" if len(lost) > 1 else ""
        raise InputError(
            f"model.max_tokens={max_tokens}: the prompts of all training documents of task {lost[0]!r}{more} are "
            f"longer, so that nothing is left to learn; {mend}"
        )
    for split in sorted(set(documents["split"]) - set(kept["split"])):
        raise InputError(f"model.max_tokens={max_tokens}: the prompts of all {split} documents are longer; {mend}")


def _notes_on_cuts(corpus: Corpus, is_kept: np.ndarray, max_tokens: int) -> list[str]:
    """A note on documents that are left out because their prompt alone is too long."""
    if is_kept.all():
        return []
    left_out = corpus.documents.loc[~is_kept].iloc[0]
    first = f"the first is {left_out['document_id']!r} of task {left_out['task']!r}"
    return [
        f"{plural(int((~is_kept).sum()), 'document')} whose prompt alone has model.max_tokens={max_tokens} or more "
        f"left out ({first}); data.truncate=prompt cuts the prompt instead"
    ]


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
    sequences = [(corpus.tokens[start:end], corpus.scored[start:end]) for start, end in pairwise(corpus.offsets)]
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
