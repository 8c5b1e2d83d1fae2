"""Scores the documents that have an answer by the configured metrics, under the adapters of one fit.

Shapes: N documents of validation and test that have an answer, B of them in a batch.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bora_sweep.config import ACCURACY, PERPLEXITY
from bora_sweep.data.decode import continuation
from bora_sweep.data.references import References
from bora_sweep.errors import InputError, plural
from bora_sweep.model.base import refuse_mismatch
from bora_sweep.model.lengths import beyond_positions, length_limits, num_positions
from bora_sweep.model.likelihood import Likelihood
from bora_sweep.model.row_cache import cache_problem
from bora_sweep.train.distributed.process_group import from_all, from_rank_zero
from bora_sweep.train.evaluate import retry_on_oom
from bora_sweep.train.metrics.answers import cached_nats, whole_nats
from bora_sweep.train.metrics.functions import score_function, scores_of
from bora_sweep.train.metrics.generation import NO_TOKEN, generate
from bora_sweep.train.pack import Pack
from bora_sweep.train.trainer import Trainer


class Scorer:
    """The metrics of a pack's fits. What would fail at their end is refused here, before they begin.

    Args:
        pack: What the fits share. Its configuration names the metrics, its corpus has the right answers.
        tokenizer: Of the base model, for metrics of generated text.

    Raises:
        InputError: The corpus has no answers, the model has too few positions for them, or a function of the user's
            own cannot be imported.
    """

    def __init__(self, pack: Pack, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self.pack, self.tokenizer, self.config = pack, tokenizer, pack.config
        self.references = _references(pack)
        corpus, metrics = pack.corpus, pack.config.metrics
        self.generated = [metric for metric in metrics if metric != ACCURACY]
        assert tokenizer is not None or not self.generated
        assert ACCURACY not in metrics or all(self.references.choice_tokens_N)
        from_rank_zero(self._import_functions)  # which alone calls them
        documents = corpus.documents.iloc[self.references.document_N]
        self.task_N = documents["task"].to_numpy()
        self.name_N = [
            f"document {name!r} of task {corpus.tasks[task]!r}"
            for name, task in zip(documents["document_id"], self.task_N, strict=True)
        ]
        self.all_N = np.arange(len(self.task_N))
        self.longest_choice_N = self.references.longest_choice_N if ACCURACY in metrics else np.zeros_like(self.task_N)
        self.new_tokens_N = self._new_tokens()
        self.limits, self.cache_problem = self._check_lengths()

    def _import_functions(self) -> None:
        for metric in self.generated:
            score_function(metric)

    def _new_tokens(self) -> np.ndarray:
        """Most new tokens of each document's generated answer: fewer than asked for where positions run out."""
        given_N, most = self.references.given_N, self.config.metric.max_new_tokens if self.generated else 0
        positions = num_positions(self.pack.base)
        return np.minimum(most, (positions or np.iinfo(np.int64).max) - given_N)

    def _check_lengths(self) -> tuple[Sequence[int], str | None]:
        """The lengths at which the model changes, and why rows cannot go on over a cache; None where they can."""
        corpus, given_N = self.pack.corpus, self.references.given_N
        longest = int((given_N + np.maximum(self.longest_choice_N, self.new_tokens_N)).max())
        base, longest_row = self.pack.base, f"a prompt with its answer has up to {longest} tokens"
        refuse_mismatch(base, self.references.largest_choice_token, corpus.longest)
        if problem := beyond_positions(base, longest):
            raise InputError(
                f"metrics={self.config.metrics}: {longest_row}, but {problem}; shorten the prompts, or leave out long "
                "answers"
            )
        limits: Sequence[int] = self.pack.length_limits
        try:
            if longest > corpus.longest:
                limits = length_limits(base, corpus.shortest, longest)
        except InputError as error:
            raise InputError(
                f"metrics={self.config.metrics}, metric.max_new_tokens={self.config.metric.max_new_tokens}: "
                f"{longest_row}; lower metric.max_new_tokens, or shorten prompts and answers ({error})"
            ) from None
        if limits:
            return limits, f"this model has other logits in rows of more than {limits[0]} tokens"
        longest_given = int(given_N.max())
        return limits, cache_problem(self.pack.adapted, int(given_N.min()), longest_given, longest - longest_given)

    def score(self, fit: Trainer, check_stop: Callable[[], None]) -> pd.DataFrame:
        """The score of each document by each metric. What a reader of the scores should know becomes a note.

        Args:
            fit: A fit at its best epoch.
            check_stop: Called after each batch.

        Returns:
            Columns document (its index in the corpus), metric, prediction, reference and score. On all processes.

        Raises:
            InputError: The model gives no likelihood of an answer, or the user's function no finite number.
        """
        fit.state.notes += self._notes()
        parts = []
        if ACCURACY in self.config.metrics:
            parts.append(self._choices(fit, self.all_N, check_stop))
        if self.generated:
            new_of = self._new_tokens_of(fit, self.all_N, check_stop)
            fit.state.notes += self._notes_on_generation(new_of)
            texts = self._texts(new_of)
            parts += [self._scored(metric, self.all_N, texts) for metric in self.generated]
        return pd.concat(parts, ignore_index=True)

    def early_stopping_scores(self, fit: Trainer, check_stop: Callable[[], None]) -> np.ndarray | None:
        """The mean on validation of `metric.early_stopping` for each fit of `fit`; None where that is perplexity.

        Args:
            fit: A fit at any epoch.
            check_stop: Called after each batch.

        Raises:
            InputError: As for `score`.
        """
        metric = self.config.metric.early_stopping
        if metric == PERPLEXITY:
            return None
        place_N = np.flatnonzero(np.isin(self.references.document_N, self.pack.corpus.split("validation")))
        if metric == ACCURACY:
            scored = self._choices(fit, place_N, check_stop)
        else:
            scored = self._scored(metric, place_N, self._texts(self._new_tokens_of(fit, place_N, check_stop)))
        return fit.mean_of_fits(self.task_N[place_N], scored["score"].to_numpy())

    def _scored(self, metric: str, place_N: np.ndarray, prediction_N: Sequence[str]) -> pd.DataFrame:
        """The rows of `score` of these documents for one metric."""
        reference_N = [self.references.text_N[n] for n in place_N]

        def scores() -> list[float]:
            if metric == ACCURACY:
                return [float(a == b) for a, b in zip(reference_N, prediction_N, strict=True)]
            return scores_of(metric, reference_N, prediction_N, [self.name_N[n] for n in place_N])

        return pd.DataFrame(
            {
                "document": self.references.document_N[place_N],
                "metric": metric,
                "prediction": prediction_N,
                "reference": reference_N,
                "score": from_rank_zero(scores),
            }
        )

    def _choices(self, fit: Trainer, place_N: np.ndarray, check_stop: Callable[[], None]) -> pd.DataFrame:
        """The rows of accuracy: the likeliest candidate answer of each document, of equally likely ones the first."""
        work = self._whole_nats if self.cache_problem is not None else self._cached_nats
        nats_of = self._on_all_processes(fit, place_N, lambda own_N: work(fit, own_N, check_stop))
        chosen = []
        for n, nats in nats_of.items():
            if self.config.metric.normalize:
                nats = nats / np.array([len(tokens) for tokens in self.references.choice_tokens_N[n]])
            if np.isnan(nats).any() or np.isinf(nats).all():
                raise self._no_number("gives no likelihood of the candidate answers of", n)
            chosen.append(self.references.choices_N[n][int(nats.argmin())])
        return self._scored(ACCURACY, place_N, chosen)

    def _new_tokens_of(self, fit: Trainer, place_N: np.ndarray, check_stop: Callable[[], None]) -> dict[int, list[int]]:
        """The generated tokens of these documents, with the token that ended them."""
        new_of = self._on_all_processes(fit, place_N, lambda own_N: self._generated(fit, own_N, check_stop))
        for n, new in new_of.items():
            if new[-1] == NO_TOKEN:
                raise self._no_number("has logits that are no numbers in the answer of", n)
        return new_of

    def _texts(self, new_of: dict[int, list[int]]) -> list[str]:
        """The generated answers as text."""
        assert self.tokenizer is not None
        ends = self.references.end_tokens
        bare = {n: new[:-1] if new[-1] in ends else new for n, new in new_of.items()}
        return [continuation(self.tokenizer, self._prompt(n), new) for n, new in bare.items()]

    def _no_number(self, what: str, n: int) -> InputError:
        return InputError(
            f"model.name={self.config.model.name}: the model {what} {self.name_N[n]} with "
            f"model.dtype={self.pack.dtype}; set another, or name another base"
        )

    def _notes(self) -> list[str]:
        notes = []
        if cut := int(self.pack.corpus.documents["was_cut"].to_numpy()[self.references.document_N].sum()):
            notes.append(f"{plural(cut, 'document')} with an answer cut at model.max_tokens")
        if self.cache_problem is not None:
            notes.append(f"metrics took longer, as each answer was run with its prompt: {self.cache_problem}")
        return notes

    def _notes_on_generation(self, new_of: dict[int, list[int]]) -> list[str]:
        most, ends, notes = self.config.metric.max_new_tokens, self.references.end_tokens, []
        if cut := sum(new[-1] not in ends for new in new_of.values()):
            generated = plural(len(new_of), "generated answer")
            notes.append(f"{cut:,} of {generated} did not end within metric.max_new_tokens={most}")
        if shortened := int((self.new_tokens_N < most).sum()):
            prompts = plural(shortened, "prompt")
            notes.append(f"{prompts} left room for fewer new tokens than metric.max_new_tokens={most}")
        return notes

    def _on_all_processes(
        self, fit: Trainer, place_N: np.ndarray, work: Callable[[np.ndarray], dict[int, Any]]
    ) -> dict[int, Any]:
        """What `work` returns for this process's part of the documents, and on the others for theirs, in order."""
        sequence_N = self.pack.corpus.first_sequence(self.references.document_N[place_N])
        own_N = place_N[np.isin(sequence_N, self.pack.shard.sequences(sequence_N))]
        with self.pack.autocast():
            own = retry_on_oom(self.pack, [fit], lambda: work(own_N))
        found = {n: result for part in from_all(own) for n, result in part.items()}
        return {n: found[n] for n in place_N.tolist()}

    def _cached_nats(self, fit: Trainer, own_N: np.ndarray, check_stop: Callable[[], None]) -> dict[int, np.ndarray]:
        nats_of: dict[int, np.ndarray] = {}
        for place_B in _batches(own_N, self.references.given_N[own_N], self.pack.scoring_rows):
            task_B = self._tasks(fit, place_B)
            nats = cached_nats(
                self.pack.adapted,
                [self._prompt(n) for n in place_B],
                [self.references.choice_tokens_N[n] for n in place_B],
                lambda row_C, task_B=task_B: fit.hierarchy.theta_BP(task_B[row_C]),
                self.pack.scoring_rows,
                self.pack.corpus.padding,
            )
            nats_of |= dict(zip(place_B.tolist(), nats, strict=True))
            check_stop()
        return nats_of

    def _whole_nats(self, fit: Trainer, own_N: np.ndarray, check_stop: Callable[[], None]) -> dict[int, np.ndarray]:
        likelihood = Likelihood(self.pack.adapted, [fit.hierarchy])
        if not len(own_N):  # a process may have none
            return {}
        answers_N = [self.references.choice_tokens_N[n] for n in own_N]
        place_M = np.repeat(own_N, [len(answers) for answers in answers_N])
        answers = [answer for answers in answers_N for answer in answers]
        length_M = self.references.given_N[place_M] + np.array([len(answer) for answer in answers], dtype=np.int64)
        nats_M = np.zeros(len(answers))
        group_M = np.searchsorted(self.limits, length_M)
        for row_C in _batches(np.arange(len(answers)), length_M, self.pack.scoring_rows, group_M):
            prompts, chosen = [self._prompt(n) for n in place_M[row_C]], [answers[row] for row in row_C]
            task_C, padding = self._tasks(fit, place_M[row_C]), self.pack.corpus.padding
            nats_M[row_C] = whole_nats(likelihood, prompts, chosen, task_C, padding)
            check_stop()
        ends = np.cumsum([len(answers) for answers in answers_N])[:-1]
        return dict(zip(own_N.tolist(), np.split(nats_M, ends), strict=True))

    def _generated(self, fit: Trainer, own_N: np.ndarray, check_stop: Callable[[], None]) -> dict[int, list[int]]:
        new_of: dict[int, list[int]] = {}
        given_N, most_N = self.references.given_N[own_N], self.new_tokens_N[own_N]
        use_cache = self.cache_problem is None
        # The rows of a batch have as many new tokens at most, and without a cache also prompts of one length.
        group_N = most_N if use_cache else given_N
        for place_B in _batches(own_N, given_N, self.pack.scoring_rows, group_N):
            new = generate(
                self.pack.adapted,
                [self._prompt(n) for n in place_B],
                fit.hierarchy.theta_BP(self._tasks(fit, place_B)),
                max_new_tokens=int(self.new_tokens_N[place_B[0]]),
                end_tokens=self.references.end_tokens,
                padding=self.pack.corpus.padding,
                use_cache=use_cache,
            )
            new_of |= dict(zip(place_B.tolist(), new, strict=True))
            check_stop()
        return new_of

    def _prompt(self, n: int) -> list[int]:
        """The tokens before a document's answer."""
        corpus = self.pack.corpus
        start = corpus.offsets[corpus.first_sequence(self.references.document_N[n])]
        return corpus.tokens[start : start + self.references.given_N[n]].tolist()

    def _tasks(self, fit: Trainer, place_B: np.ndarray) -> Tensor:
        """The rows of the fit's bank of these documents' tasks, whose adapters it then holds."""
        task_B = self.task_N[place_B] - self.pack.shard.tasks.start
        fit.hierarchy.hold(task_B)
        return torch.from_numpy(task_B).to(self.pack.accelerator.device)


def _batches(
    item_N: np.ndarray, length_N: np.ndarray, rows: int, group_N: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Items of similar lengths, the longest first, so that a batch that does not fit in memory comes first.

    Args:
        item_N: What is returned in batches.
        length_N: The length of each.
        rows: Items of a batch, at most.
        group_N: Items of unlike groups share no batch.
    """
    group_N = np.zeros_like(length_N) if group_N is None else group_N
    order = np.lexsort((-length_N, -group_N))
    starts = np.flatnonzero(np.diff(group_N[order], prepend=-1))
    for group in np.split(order, starts[1:]) if len(order) else []:
        for start in range(0, len(group), rows):
            yield item_N[group[start : start + rows]]


def _references(pack: Pack) -> References:
    references, config = pack.corpus.references, pack.config
    has_any = references is not None and len(references.document_N) > 0
    if references is None or not has_any:
        raise InputError(
            f"metrics={config.metrics}: no document of validation and test has an answer to compare with; give data "
            "with prompts and answers, or drop metrics"
        )
    splits = set(pack.corpus.documents["split"].to_numpy()[references.document_N])
    choosers = {"search.objective": config.search.objective, "metric.early_stopping": config.metric.early_stopping}
    for key, metric in choosers.items():
        if metric != PERPLEXITY and "validation" not in splits:
            raise InputError(
                f"{key}={metric}: no document of validation has an answer to compare with; set {key}={PERPLEXITY}, or "
                "give validation such documents"
            )
    return references
