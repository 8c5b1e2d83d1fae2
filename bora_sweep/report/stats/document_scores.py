"""Scores of the same documents under several settings, matched document by document.

N documents, J trials, M settings (values of tau, methods; seeds pooled), D tasks, n rows of `document_scores`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from bora_sweep.errors import InputError


@dataclass(frozen=True)
class DocumentScores:
    """Nats of the same N documents under J trials; documents are ordered by task."""

    task_N: np.ndarray
    tokens_N: np.ndarray
    """Scored tokens of each document."""
    nats_NJ: np.ndarray
    """Negative log-likelihood of each document, summed over its tokens."""
    setting_J: np.ndarray | None = None
    """The setting of each trial, 0 to M - 1; None: each trial is a setting of its own."""
    seed_J: np.ndarray | None = None
    """NaN where the fit depends on no seed, or the seed is not known."""

    @cached_property
    def nats_NM(self) -> np.ndarray:
        """Mean over the trials of each setting, its seeds: a ratio of means is a ratio of sums."""
        if self.setting_J is None:
            return self.nats_NJ
        columns = [self.nats_NJ[:, self.setting_J == m].mean(axis=1) for m in range(int(self.setting_J.max()) + 1)]
        return np.column_stack(columns)

    @cached_property
    def tasks(self) -> list[str]:
        """Each task once, in order."""
        return self.task_N[self.starts_D].tolist()

    @cached_property
    def starts_D(self) -> np.ndarray:
        """Row of each task's first document."""
        return np.flatnonzero(np.r_[True, self.task_N[1:] != self.task_N[:-1]][: len(self.task_N)])

    @cached_property
    def counts_D(self) -> np.ndarray:
        """Number of documents of each task."""
        return np.diff(np.r_[self.starts_D, len(self.task_N)])

    @cached_property
    def strata(self) -> list[np.ndarray]:
        """Rows of each task, to resample within. Tasks with a single document form one stratum.

        A lone task with a single document joins the smallest other task.
        """
        tasks = np.split(np.arange(len(self.task_N)), self.starts_D[1:])
        single = [rows for rows in tasks if len(rows) == 1]
        others = sorted((rows for rows in tasks if len(rows) > 1), key=len)
        if len(single) == 1 and others:
            single, others = [*single, others[0]], others[1:]
        return [*others, *([np.concatenate(single)] if single else [])]

    def of_task(self, task: str) -> "DocumentScores":
        """The documents of one task."""
        first, last = np.searchsorted(self.task_N, task), np.searchsorted(self.task_N, task, side="right")
        rows = slice(first, last)
        return DocumentScores(self.task_N[rows], self.tokens_N[rows], self.nats_NJ[rows], self.setting_J, self.seed_J)


def align_documents(scores: pd.DataFrame, settings: Sequence[int]) -> DocumentScores:
    """Match the rows of `document_scores` document by document.

    Args:
        scores: `document_scores` with `run` and `setting`, an integer that pools trials; also `seed`, where known.
        settings: Values of `setting`, in the order of the M columns.

    Raises:
        InputError: A trial lacks a document, has one twice, or scored another number of tokens than the others.
    """
    documents, row_n = sorted_keys(scores, ["task", "split", "document_id"])
    trials, column_n = sorted_keys(scores, ["setting", "run", "trial_id"])
    shape = len(documents), len(trials)
    cell_n = row_n * shape[1] + column_n
    count_NJ = np.bincount(cell_n, minlength=shape[0] * shape[1]).reshape(shape)
    tokens_NJ, nats_NJ = np.zeros((2, *shape))
    tokens_NJ.ravel()[cell_n], nats_NJ.ravel()[cell_n] = scores["num_tokens"], scores["nll_nats"]
    _check(documents, trials, count_NJ, tokens_NJ)
    seed_J = np.full(len(trials), np.nan)
    if "seed" in scores:
        seed_J[column_n] = scores["seed"].to_numpy(dtype=float, na_value=np.nan)
    number_of = {setting: m for m, setting in enumerate(settings)}
    return DocumentScores(
        task_N=np.array([task for task, _, _ in documents], dtype=object),
        tokens_N=tokens_NJ[:, 0],
        nats_NJ=nats_NJ,
        setting_J=np.array([number_of[setting] for setting, _, _ in trials], dtype=int),
        seed_J=seed_J,
    )


def sorted_keys(rows: pd.DataFrame, columns: Iterable[str]) -> tuple[list[tuple], np.ndarray]:
    """The distinct combinations of `columns` in ascending order, and the index of each row's combination."""
    values_of_column, code_n = [], np.zeros(len(rows), dtype=np.int64)
    for name in columns:
        first_seen_n, values = pd.factorize(rows[name].to_numpy(dtype=object))
        order = sorted(range(len(values)), key=values.__getitem__)
        rank = np.empty(len(values), dtype=np.int64)
        rank[order] = np.arange(len(values))
        values_of_column.append([values[i] for i in order])
        code_n = code_n * max(len(values), 1) + rank[first_seen_n]
    codes, index_n = np.unique(code_n, return_inverse=True)
    parts = []
    for values in reversed(values_of_column):
        codes, digits = np.divmod(codes, max(len(values), 1))
        parts.append([values[i] for i in digits])
    return list(zip(*reversed(parts), strict=True)), index_n


def _check(documents: list[tuple], trials: list[tuple], count_NJ: np.ndarray, tokens_NJ: np.ndarray) -> None:
    """Every trial scored every document once, with the same number of tokens."""
    for n, j in np.argwhere(count_NJ != 1)[:1]:
        (task, split, document), (_, run, trial) = documents[n], trials[j]
        name = f"{run}, trial {trial}: document {document!r} of task {task!r} ({split})"
        if count_NJ[n, j] > 1:
            raise InputError(f"{name} is scored twice: ids must be unique within a task; mend data.id_column")
        raise InputError(f"{name} has no score, but another trial's has: compare runs of the same data and splits")
    for n, j in np.argwhere(tokens_NJ != tokens_NJ[:, :1])[:1]:
        (task, split, document), (_, run, trial) = documents[n], trials[j]
        raise InputError(
            f"{run}, trial {trial}: document {document!r} of task {task!r} ({split}) has {tokens_NJ[n, j]:.0f} tokens, "
            f"{tokens_NJ[n, 0]:.0f} in trial {trials[0][2]}: compare runs of the same tokenizer and model.max_tokens"
        )
