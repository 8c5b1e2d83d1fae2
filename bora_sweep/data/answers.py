"""From documents to the answers that metrics compare with: references, and candidate answers with their tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from bora_sweep.config import ACCURACY, Config, DataConfig
from bora_sweep.data.chat import ChatFormat
from bora_sweep.data.conversation import ASSISTANT
from bora_sweep.data.corpus import Corpus
from bora_sweep.data.encode import Encoder, fill
from bora_sweep.data.references import References
from bora_sweep.data.tokens import TokenizedCorpus, placeholder_values
from bora_sweep.errors import InputError, plural

MOST_CHOICES = 64
"""Distinct completions of the training split up to which they are the candidate answers."""


def make_references(
    config: Config, corpus: Corpus, tokenized: TokenizedCorpus, tokenizer: PreTrainedTokenizerBase
) -> References:
    """The answers of the documents of validation and test, as a model generates and scores them.

    The answer of a conversation is the assistant's last turn. With a `data.template` the answer is what it writes.

    Args:
        config: `metrics`, and how documents are written.
        corpus: The documents.
        tokenized: Their tokens. Documents that are left out there have no answer, and neither have conversations whose
            last turn was cut off.
        tokenizer: Theirs.

    Raises:
        InputError: Documents are running text, all turns are scored, a prompt is in several chunks, there are too many
            candidate answers for `accuracy`, or an answer is not among them.
    """
    if corpus.form == "text":
        raise InputError(
            f"metrics={config.metrics}: rows of running text have no answer to compare with; give prompts and "
            "completions, or conversations, or drop it"
        )
    if config.data.loss_on == "all":
        raise InputError(
            f"metrics={config.metrics}: data.loss_on=all scores what the user says too; set data.loss_on=assistant"
        )
    answers = (_Turns if corpus.form == "conversation" else _Completions)(corpus, config.data, Encoder(tokenizer))
    rows = _rows(corpus, tokenized)
    document_N, given_N = [], []
    for n in np.flatnonzero(tokenized.documents["split"] != "train").tolist():
        place = tokenized.scored_places(n)
        begins = place[np.diff(place, prepend=-1) > 1]
        if len(begins) == answers.num_scored(rows[n]):
            document_N.append(n)
            given_N.append(int(begins[-1]))
    _refuse_long_prompts(config, tokenized, document_N, given_N)
    row_N = [rows[n] for n in document_N]
    text_N = tuple(answers.text(row) for row in row_N)
    choices_N: tuple[tuple[str, ...], ...] = ((),) * len(row_N)
    tokens_N: tuple[tuple[tuple[int, ...], ...], ...] = ((),) * len(row_N)
    if ACCURACY in config.metrics:
        offered = _choices(corpus, answers, config)
        pairs = [answers.choices(row, offered(row)) for row in row_N]
        _refuse_missing(corpus, row_N, text_N, [texts for texts, _ in pairs])
        choices_N, tokens_N = tuple(texts for texts, _ in pairs), tuple(tokens for _, tokens in pairs)
    return References(
        document_N=np.array(document_N, dtype=np.int64),
        given_N=np.array(given_N, dtype=np.int64),
        text_N=text_N,
        choices_N=choices_N,
        choice_tokens_N=tokens_N,
        end_tokens=tuple(answers.end_tokens),
    )


def _refuse_long_prompts(
    config: Config, tokenized: TokenizedCorpus, document_N: Sequence[int], given_N: Sequence[int]
) -> None:
    """Refuse an answer that begins in a later chunk: a metric would compare it without most of its prompt."""
    long = [n for n, given in zip(document_N, given_N, strict=True) if given >= config.model.max_tokens]
    if long:
        document = tokenized.documents.iloc[long[0]]
        raise InputError(
            f"metrics={config.metrics}, model.long_documents={config.model.long_documents}: "
            f"{plural(len(long), 'document')} of validation and test with model.max_tokens={config.model.max_tokens} "
            f"tokens or more before the answer, the first {document['document_id']!r} of task "
            f"{tokenized.tasks[document['task']]!r}; an answer follows its whole prompt. Raise model.max_tokens, "
            "shorten the prompts, or set model.long_documents=cut, which leaves these answers out"
        )


def _rows(corpus: Corpus, tokenized: TokenizedCorpus) -> list[int]:
    """For each document that has tokens, its row in the corpus."""
    names = ["task", "split", "document_id"]
    row_of = {key: row for row, key in enumerate(corpus.documents[names].itertuples(index=False, name=None))}
    named = tokenized.documents.assign(task=np.asarray(corpus.tasks, dtype=object)[tokenized.documents["task"]])
    return [row_of[key] for key in named[names].itertuples(index=False, name=None)]


def _choices(corpus: Corpus, answers: "_Completions | _Turns", config: Config) -> Any:
    """A function from a document's row to its candidate answers."""
    if config.data.choices_column is not None:
        return lambda row: tuple(corpus.documents["content"].iloc[row]["choices"])
    train = np.flatnonzero(corpus.documents["split"] == "train").tolist()
    distinct = tuple(sorted({answers.raw(row) for row in train}))
    mend = "name the candidates of each row by data.choices_column, or drop accuracy"
    if len(distinct) > MOST_CHOICES:
        raise InputError(
            f"metrics={config.metrics}: accuracy chooses among the distinct completions of the training split, which "
            f"are {len(distinct):,}, more than {MOST_CHOICES}; {mend}"
        )
    stripped: dict[str, str] = {}
    for choice in distinct:
        if (other := stripped.setdefault(choice.strip(), choice)) != choice:
            raise InputError(
                f"metrics={config.metrics}: the completions {other!r} and {choice!r} differ by white space alone, and "
                "would be two candidates of accuracy; write them alike"
            )
    if len(distinct) < 2:
        raise InputError(f"metrics={config.metrics}: the training split has one distinct completion alone; {mend}")
    return lambda _: distinct


def _refuse_missing(
    corpus: Corpus, row_N: Sequence[int], text_N: Sequence[str], choices_N: Sequence[tuple[str, ...]]
) -> None:
    """Refuse answers that no candidate is."""
    missing = [n for n, (text, choices) in enumerate(zip(text_N, choices_N, strict=True)) if text not in choices]
    if missing:
        document = corpus.documents.iloc[row_N[missing[0]]]
        more = f" ({plural(len(missing) - 1, 'document')} more alike)" if len(missing) > 1 else ""
        answer = text_N[missing[0]]
        raise InputError(
            f"document {document['document_id']!r} of task {document['task']!r}: its answer, {answer!r}, is not among "
            f"its {len(choices_N[missing[0]])} candidates{more}; the candidates are the distinct completions of the "
            "training split, or those of data.choices_column. Name them there, or drop accuracy"
        )


class _Completions:
    """Answers of prompts with completions."""

    def __init__(self, corpus: Corpus, data: DataConfig, encoder: Encoder) -> None:
        self.documents, self.data, self.encoder, self.end_tokens = corpus.documents, data, encoder, [encoder.end]
        self.known: dict[tuple[str, ...], tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]] = {}

    def num_scored(self, _: int) -> int:
        """Stretches of the document that are scored."""
        return 1

    def raw(self, row: int) -> str:
        """The completion as it stands in the row."""
        return self.documents["text"].iloc[row]

    def text(self, row: int) -> str:
        """The answer as the template writes it."""
        return fill(self.data.template, self._values(row, self.raw(row)))

    def choices(self, row: int, raw: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
        """Candidate answers as the template writes them, and their tokens with the end token."""
        values = [self._values(row, choice) for choice in raw]
        texts = tuple(fill(self.data.template, value) for value in values)
        if texts not in self.known:
            tokens = self.encoder.encode(self.data.template, values)
            self.known[texts] = texts, tuple((*choice, self.encoder.end) for choice in tokens)
        return self.known[texts]

    def _values(self, row: int, text: str) -> dict[str, str]:
        task, content = self.documents["task"].iloc[row], self.documents["content"].iloc[row]
        return placeholder_values(self.data, task, text, content)


class _Turns:
    """Answers of conversations: the assistant's last turn, as its tokens read."""

    def __init__(self, corpus: Corpus, data: DataConfig, encoder: Encoder) -> None:
        self.documents, self.data, self.encoder = corpus.documents, data, encoder
        self.format, self.known = ChatFormat(encoder, data), dict[tuple, tuple]()
        self.end_tokens = self.format.end_tokens

    def num_scored(self, row: int) -> int:
        """Turns that are scored."""
        content = self.documents["content"].iloc[row]
        turns = [turn for turn in content["messages"][content["num_given"] or 0 :] if turn["role"] == ASSISTANT]
        return 1 if self.data.loss_on == "last_assistant" else len(turns)

    def raw(self, row: int) -> str:
        """What the assistant says last."""
        messages = self.documents["content"].iloc[row]["messages"]
        return next(turn["content"] for turn in reversed(messages) if turn["role"] == ASSISTANT)

    def text(self, row: int) -> str:
        """The last turn as the model would generate it."""
        return self._read(self._tokens(row, self.raw(row)))

    def choices(self, row: int, raw: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
        """Candidate turns as the model would generate them, and their tokens with the one that ends the turn."""
        tokens = tuple(self._tokens(row, choice) for choice in raw)
        pair = tuple(map(self._read, tokens)), tokens
        return self.known.setdefault(pair, pair)  # one object for equal candidates, so that it travels once

    def _read(self, tokens: tuple[int, ...]) -> str:
        return str(self.encoder.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def _tokens(self, row: int, answer: str) -> tuple[int, ...]:
        """The tokens of the last turn, were it this answer."""
        content, document = self.documents["content"].iloc[row], self.documents.iloc[row]
        messages = list(content["messages"])
        last = max(turn for turn, message in enumerate(messages) if message["role"] == ASSISTANT)
        changed = [*messages[:last], {**messages[last], "content": answer}]
        name = f"document {document['document_id']!r} of task {document['task']!r}"
        ((tokens, scored),) = self.format.encode([{**content, "messages": changed}], [name])
        begins = np.flatnonzero(scored[1:] & ~scored[:-1])[-1] + 1
        return tuple(tokens[begins:])
