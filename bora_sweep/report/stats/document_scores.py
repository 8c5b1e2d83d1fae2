"""Scores of the same documents under several settings, matched document by document.

N documents, J trials, M settings (values of tau, methods; seeds pooled), D tasks, n rows of a table.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from bora_sweep.errors import InputError
from bora_sweep.report.stats.measure import NATS, Measure


@dataclass(frozen=True)
class DocumentScores:
    """Values of the same N documents under J trials, lower being better; documents are ordered by task."""

    task_N: np.ndarray
    weight_N: np.ndarray
    """Scored tokens of each document; 1 for a metric."""
    value_NJ: np.ndarray
    """Negative log-likelihood of each document, summed over its tokens; minus its score for a metric."""
    setting_J: np.ndarray | None = None
    """The setting of each trial, 0 to M - 1; None: each trial is a setting of its own."""
    seed_J: np.ndarray | None = None
    """NaN where the fit depends on no seed, or the seed is not known."""
    measure: Measure = NATS

    @cached_property
    def value_NM(self) -> np.ndarray:
        """Mean over the trials of each setting, its seeds: a ratio of means is a ratio of sums."""
        if self.setting_J is None:
            return self.value_NJ
        columns = [self.value_NJ[:, self.setting_J == m].mean(axis=1) for m in range(int(self.setting_J.max()) + 1)]
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

    def agree(self, value_N: np.ndarray, strata: Sequence[np.ndarray]) -> np.ndarray:
        """Of each stratum, whether it has several documents that all score alike by a metric.

        Args:
            value_N: Of a setting, or differences of two.
            strata: Rows of each stratum.
        """
        if not self.measure.is_metric:
            return np.zeros(len(strata), dtype=bool)
        scale = 1e-9 * np.abs(value_N).max(initial=0)  # means over seeds differ in their last digit
        return np.array([len(rows) > 1 and np.ptp(value_N[rows]) <= scale for rows in strata], dtype=bool)

    @cached_property
    def task_rows(self) -> list[np.ndarray]:
        """Rows of each task."""
        return np.split(np.arange(len(self.task_N)), self.starts_D[1:])

    @cached_property
    def strata(self) -> list[np.ndarray]:
        """Rows of each task, to resample within. Tasks with a single document form one stratum.

        A lone task with a single document joins the smallest other task.
        """
        single = [rows for rows in self.task_rows if len(rows) == 1]
        others = sorted((rows for rows in self.task_rows if len(rows) > 1), key=len)
        if len(single) == 1 and others:
            single, others = [*single, others[0]], others[1:]
        return [*others, *([np.concatenate(single)] if single else [])]

    @cached_property
    def strata_order(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows of all strata, one after the other, and where each stratum begins."""
        return np.concatenate(self.strata), np.cumsum([0, *(len(rows) for rows in self.strata[:-1])])

    def of_task(self, task: str) -> "DocumentScores":
        """The documents of one task."""
        first, last = np.searchsorted(self.task_N, task), np.searchsorted(self.task_N, task, side="right")
        rows = slice(first, last)
        return replace(self, task_N=self.task_N[rows], weight_N=self.weight_N[rows], value_NJ=self.value_NJ[rows])


def align_documents(scores: pd.DataFrame, settings: Sequence[int], measure: Measure = NATS) -> DocumentScores:
    """Match the rows of `document_scores`, or those of one metric in `predictions`, document by document.

    Args:
        scores: The rows, with `run` and `setting`, an integer that pools trials; also `seed`, where known.
        settings: Values of `setting`, in the order of the M columns.
        measure: What is taken of them: nats and tokens, or the scores of a metric.

    Raises:
        InputError: A trial lacks a document, has one twice, scored another number of tokens than the others, or its
            score is not finite.
    """
    documents, row_n = sorted_keys(scores, ["task", "split", "document_id"])
    trials, column_n = sorted_keys(scores, ["setting", "run", "trial_id"])
    shape = len(documents), len(trials)
    cell_n = row_n * shape[1] + column_n
    count_NJ = np.bincount(cell_n, minlength=shape[0] * shape[1]).reshape(shape)
    weight_NJ, value_NJ = np.zeros((2, *shape))
    value_n, weight_n = values_of(scores, measure)
    weight_NJ.ravel()[cell_n], value_NJ.ravel()[cell_n] = weight_n, value_n
    _check(documents, trials, count_NJ, weight_NJ, measure)
    if measure.is_metric:
        _check_scores(documents, trials, value_NJ, measure)
    seed_J = np.full(len(trials), np.nan)
    if "seed" in scores:
        seed_J[column_n] = scores["seed"].to_numpy(dtype=float, na_value=np.nan)
    number_of = {setting: m for m, setting in enumerate(settings)}
    return DocumentScores(
        task_N=np.array([task for task, _, _ in documents], dtype=object),
        weight_N=weight_NJ[:, 0],
        value_NJ=value_NJ,
        setting_J=np.array([number_of[setting] for setting, _, _ in trials], dtype=int),
        seed_J=seed_J,
        measure=measure,
    )


def values_of(scores: pd.DataFrame, measure: Measure) -> tuple[np.ndarray, np.ndarray]:
    """value_n and weight_n of rows: nats and tokens of `document_scores`, or minus the score of `predictions` and 1."""
    if measure.is_metric:
        return -scores["score"].to_numpy(dtype=float), np.ones(len(scores))
    return scores["nll_nats"].to_numpy(dtype=float), scores["num_tokens"].to_numpy(dtype=float)


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


def _check(
    documents: list[tuple], trials: list[tuple], count_NJ: np.ndarray, weight_NJ: np.ndarray, measure: Measure
) -> None:
    """Every trial scored every document once, with the same number of tokens."""
    for n, j in np.argwhere(count_NJ != 1)[:1]:
        name = _name(documents[n], trials[j])
        if count_NJ[n, j] > 1:
            raise InputError(f"{name} is scored twice: ids must be unique within a task; mend data.id_column")
        score = f"{measure.name} score" if measure.is_metric else "score"
        raise InputError(f"{name} has no {score}, but another trial's has: compare runs of the same data and splits")
    for n, j in np.argwhere(weight_NJ != weight_NJ[:, :1])[:1]:
        raise InputError(
            f"{_name(documents[n], trials[j])} has {weight_NJ[n, j]:.0f} tokens, "
            f"{weight_NJ[n, 0]:.0f} in trial {trials[0][2]}: compare runs of the same tokenizer, "
            "model.max_tokens and model.long_documents"
        )


def _check_scores(documents: list[tuple], trials: list[tuple], value_NJ: np.ndarray, measure: Measure) -> None:
    """Every score of a metric is finite, and within its limits."""
    low, high = measure.limits
    for n, j in np.argwhere(~(np.isfinite(value_NJ) & (low <= -value_NJ) & (-value_NJ <= high)))[:1]:
        allowed = "finite" if measure.unit == "number" else f"from {low:g} to {high:g}"
        raise InputError(
            f"{_name(documents[n], trials[j])} has the {measure.name} score {-value_NJ[n, j]}; it must be {allowed}"
        )


def _name(document: tuple, trial: tuple) -> str:
    (task, split, document_id), (_, run, trial_id) = document, trial
    return f"{run}, trial {trial_id}: document {document_id!r} of task {task!r} ({split})"
