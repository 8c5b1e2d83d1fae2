"""The corpus as token sequences.

Shapes: N documents, B rows, T tokens.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from bora_sweep.config import Config
from bora_sweep.data.corpus import Corpus
from bora_sweep.data.encode import Encoder, boundary_tokens
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
    num_unknown: int = 0
    """Tokens that stand for text which the tokenizer does not know."""
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


def tokenize(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    *,
    max_text_tokens: int | None = None,
    prompt: str | None = None,
    template: str = "{text}",
) -> TokenizedCorpus:
    """Each document as a sequence: start symbol or prompt, then text, then end token.

    Args:
        corpus: The documents.
        tokenizer: Control marks within a text or a task's name are encoded as characters.
        max_tokens: Most tokens of a sequence. The text is cut, so that the end token stays.
        max_text_tokens: Most tokens of a text. The whole is then cut at `max_tokens`, also the end token.
        prompt: Replaces the start symbol; `{task}` is the task's name.
        template: What is scored of a document; `{text}` is its text.

    Raises:
        InputError: The tokenizer has no end token, it makes control tokens of a text, or a prompt leaves no room for
            text.
    """
    encoder, (start, end) = Encoder(tokenizer), boundary_tokens(tokenizer)
    task_N, text_N = corpus.documents["task"].tolist(), corpus.documents["text"].tolist()
    prefix_of = dict.fromkeys(corpus.tasks, start)
    if prompt is not None:
        prompts = encoder.encode(prompt, [{"task": task} for task in corpus.tasks])
        prefix_of = dict(zip(corpus.tasks, prompts, strict=True))
    _check_prompts(prefix_of, max_tokens)
    bodies = encoder.encode(template, [{"task": task, "text": text} for task, text in zip(task_N, text_N, strict=True)])
    sequences, was_cut = [], []
    for task, body in zip(task_N, bodies, strict=True):
        prefix = prefix_of[task]
        kept = body[: max_tokens - len(prefix) - 1 if max_text_tokens is None else max_text_tokens]
        sequences.append([*prefix, *kept, end][:max_tokens])
        was_cut.append(len(sequences[-1]) < len(prefix) + len(body) + 1)
    lengths = np.array([len(sequence) for sequence in sequences])
    documents = corpus.documents.drop(columns="text").assign(
        task=pd.Categorical(corpus.documents["task"], categories=list(corpus.tasks)).codes.astype(np.int64),
        num_tokens=lengths - np.array([len(prefix_of[task]) for task in task_N]),
        was_cut=was_cut,
        # The floor is known for whole documents only.
        floor_nll_nats=corpus.documents["floor_nll_nats"].mask(was_cut),
    )
    tokens = np.concatenate([np.array(sequence, dtype=np.int32) for sequence in sequences])
    given_N = lengths - documents["num_tokens"].to_numpy()
    unknown = tokenizer.unk_token_id
    return TokenizedCorpus(
        name=corpus.name,
        tasks=corpus.tasks,
        documents=documents.reset_index(drop=True),
        tokens=tokens,
        scored=np.concatenate([np.arange(length) >= given for length, given in zip(lengths, given_N, strict=True)]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        padding=end,
        num_unknown=0 if unknown in (None, start[0], end) else int((tokens == unknown).sum()),
    )


def tokenize_for(config: Config, corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> TokenizedCorpus:
    """`tokenize` with the settings of `config`."""
    model, data = config.model, config.data
    return tokenize(
        corpus,
        tokenizer,
        model.max_tokens,
        max_text_tokens=model.max_text_tokens,
        prompt=data.prompt,
        template=data.template,
    )


def token_notes(corpus: TokenizedCorpus) -> list[str]:
    """Notes on suspicious tokens: unknown ones, none in a document, or those of a training document."""
    documents, end_N = corpus.documents, corpus.offsets[1:]
    num_N = documents["num_tokens"].to_numpy()
    scored_N = [corpus.tokens[end - num : end].tobytes() for end, num in zip(end_N, num_N, strict=True)]
    is_trained_N = (documents["split"] == "train").to_numpy()
    trained = {scored for scored, is_trained in zip(scored_N, is_trained_N, strict=True) if is_trained}
    empty = int((num_N <= 1).sum())
    leaked = sum(scored in trained for scored, is_trained in zip(scored_N, is_trained_N, strict=True) if not is_trained)
    notes = [f"{plural(empty, 'document')} with no token but the end token"] if empty else []
    if corpus.num_unknown:
        share = f"{corpus.num_unknown:,} of {plural(len(corpus.tokens), 'token')}"
        notes.append(
            f"{share} stand for text that the tokenizer does not know; perplexities do not tell its words apart"
        )
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
