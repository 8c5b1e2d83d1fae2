"""Token sequences of a corpus, and the batches that mix its tasks.

Shapes: N documents, B rows, T tokens.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from bora_sweep.config import Config
from bora_sweep.data.corpus import Corpus
from bora_sweep.data.encode import Encoder, boundary_tokens
from bora_sweep.errors import InputError, plural

FILLED, SMALLEST_PART = 0.95, 12


@dataclass(frozen=True)
class TokenizedCorpus:
    """A corpus as arrays, so that worker processes can share one copy of it.

    `documents` has a row per document: task (its place in `tasks`), split, document_id, floor_nll_nats, num_tokens
    (scored ones, the last of it), was_cut. Document n's sequence is `tokens[offsets[n] : offsets[n + 1]]`.
    """

    name: str
    tasks: tuple[str, ...]
    documents: pd.DataFrame
    tokens: np.ndarray
    offsets: np.ndarray
    padding: int = 0
    """What rows are filled with: the end token; where padding is not scored any token will do."""

    @property
    def num_tasks(self) -> int:
        """D."""
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


def tokenize(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    max_text_tokens: int | None = None,
    prompt: str | None = None,
    template: str = "{text}",
) -> TokenizedCorpus:
    """Each document as start symbol or prompt, text, end token, of `max_tokens` at most.

    The text is cut so that the end token stays; with `max_text_tokens` to that length, and the whole is then cut
    wherever it ends. Marks of control in a text or a task's name are characters.

    Raises:
        InputError: The tokenizer has no end token, or makes control tokens of a text, or a prompt leaves no room for
            text.
    """
    encoder, (start, end) = Encoder(tokenizer), boundary_tokens(tokenizer)
    task_N, text_N = corpus.documents["task"].tolist(), corpus.documents["text"].tolist()
    given_of = dict.fromkeys(corpus.tasks, start)
    if prompt is not None:
        prompts = encoder.encode(prompt, [{"task": task} for task in corpus.tasks])
        given_of = dict(zip(corpus.tasks, prompts, strict=True))
    _refuse_long_prompts(given_of, max_tokens)
    bodies = encoder.encode(template, [{"task": task, "text": text} for task, text in zip(task_N, text_N, strict=True)])
    sequences, was_cut = [], []
    for task, body in zip(task_N, bodies, strict=True):
        given = given_of[task]
        kept = body[: max_tokens - len(given) - 1 if max_text_tokens is None else max_text_tokens]
        sequences.append([*given, *kept, end][:max_tokens])
        was_cut.append(len(sequences[-1]) < len(given) + len(body) + 1)
    lengths = np.array([len(sequence) for sequence in sequences])
    documents = corpus.documents.drop(columns="text").assign(
        task=pd.Categorical(corpus.documents["task"], categories=list(corpus.tasks)).codes.astype(np.int64),
        num_tokens=lengths - np.array([len(given_of[task]) for task in task_N]),
        was_cut=was_cut,
        # What a cut document is worth under the true source is not known.
        floor_nll_nats=corpus.documents["floor_nll_nats"].mask(was_cut),
    )
    return TokenizedCorpus(
        name=corpus.name,
        tasks=corpus.tasks,
        documents=documents.reset_index(drop=True),
        tokens=np.concatenate([np.array(sequence, dtype=np.int32) for sequence in sequences]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        padding=end,
    )


def tokenize_for(config: Config, corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> TokenizedCorpus:
    """`tokenize` as `config` has it."""
    model, data = config.model, config.data
    return tokenize(corpus, tokenizer, model.max_tokens, model.max_text_tokens, data.prompt, data.template)


def remarks(corpus: TokenizedCorpus) -> list[str]:
    """What is suspicious in the tokens of a corpus, whatever its texts are."""
    documents, end_N = corpus.documents, corpus.offsets[1:]
    num_N = documents["num_tokens"].to_numpy()
    scored_N = [corpus.tokens[end - num : end].tobytes() for end, num in zip(end_N, num_N, strict=True)]
    is_trained_N = (documents["split"] == "train").to_numpy()
    trained = {scored for scored, is_trained in zip(scored_N, is_trained_N, strict=True) if is_trained}
    empty = int((num_N <= 1).sum())
    twice = sum(scored in trained for scored, is_trained in zip(scored_N, is_trained_N, strict=True) if not is_trained)
    found = [f"{plural(empty, 'document')} of which the tokenizer leaves no token, but for the end"] if empty else []
    if twice:
        found.append(f"{plural(twice, 'document')} of validation and test with the tokens of one that is trained on")
    return found


def _refuse_long_prompts(given_of: dict[str, list[int]], max_tokens: int) -> None:
    task = max(given_of, key=lambda task: len(given_of[task]))
    if len(given_of[task]) + 2 > max_tokens:
        raise InputError(
            f"model.max_tokens={max_tokens}: what stands before a text has {len(given_of[task])} tokens for task "
            f"{task!r}, which leaves no room for text and end token; raise it, or shorten data.prompt"
        )
    if not all(given_of.values()):
        raise InputError("data.prompt: has no token to begin a document with; write something, or drop it")
