"""From trials to settings: pool seeds, choose one candidate for each setting on validation.

A setting is one method at one tau and structure. Its candidates differ in learning rate, alpha, parametrization or
solver; the trials of a candidate differ in their seed alone.

D tasks, M candidates or settings, L splits (train, validation, test), C columns of `task_scores`, n rows of a table.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from bora_sweep.errors import InputError
from bora_sweep.report.stats.document_scores import DocumentScores, align_documents, sorted_keys
from bora_sweep.report.stats.summary import (
    SPLITS,
    TEST,
    TRAIN,
    VALIDATION,
    Key,
    Setting,
    Structure,
    Summary,
    structure_of,
)
from bora_sweep.runs.results import Results

_COLUMNS = ["num_documents", "num_tokens", "nll_nats", "floor_nll_nats", "distance_to_global"]
_DOCUMENTS, _TOKENS, _NATS, _FLOOR, _DISTANCE = range(5)
_CANDIDATE = ["method", "tau", *Structure._fields, "learning_rate", "parametrization", "solver", "lora_alpha"]
"""Columns of `trials` in which the seeds of one candidate agree."""


def summarise(results: Results) -> Summary:
    """Pool the finished trials into settings.

    Of a setting's candidates the one with the lowest validation perplexity represents it. Fits are compared over tau
    in the structure that was fitted at most values of tau.

    Raises:
        InputError: No MAP fit has finished, or the trials did not score the same documents.
    """
    trials = results.trials.assign(lora_variant=results.trials["lora_variant"].fillna("lora"))  # null in older results
    rows_of_candidate = _finished_candidates(trials)
    candidate_of = {_key(row): m for m, rows in enumerate(rows_of_candidate) for row in rows}
    tasks, means_DMLC = _mean_scores(results.task_scores, candidate_of, [len(rows) for rows in rows_of_candidate])
    candidates = [_candidate(rows, means_DMLC[:, m]) for m, rows in enumerate(rows_of_candidate)]
    structure = _most_fitted_structure(candidates)
    chosen = _choose_candidates(candidates, structure)
    means_DMLC = means_DMLC[:, list(chosen)]
    order_D = np.lexsort((np.arange(len(tasks)), -means_DMLC[:, 0, TRAIN, _DOCUMENTS]))
    means_DMLC = means_DMLC[order_D]
    test_DMC, sizes_DLC = means_DMLC[:, :, TEST], means_DMLC[:, 0]
    scores = _with_seeds(results.document_scores, trials)
    scores = scores.assign(setting=_candidate_of_rows("document_scores", scores, candidate_of))
    return Summary(
        settings=[replace(candidates[m], candidate_trials=keys) for m, keys in chosen.items()],
        structure=structure,
        tasks=[tasks[d] for d in order_D],
        num_documents_DL=sizes_DLC[..., _DOCUMENTS],
        num_tokens_DL=sizes_DLC[..., _TOKENS],
        perplexity_DM=_perplexity(test_DMC, _NATS),
        distance_DM=test_DMC[..., _DISTANCE],
        floor_D=_perplexity(sizes_DLC[:, TEST], _FLOOR),
        floor=float(_perplexity(sizes_DLC[:, TEST].sum(axis=0), _FLOOR)),
        test_scores=_scores_of(scores, list(chosen), "test"),
        validation_scores=_scores_of(scores, list(chosen), "validation"),
        trials=trials,
    )


def perplexities(nll_nats: np.ndarray, num_tokens: np.ndarray) -> np.ndarray:
    """exp(nats / tokens) of sums, element by element; inf where it overflows, NaN without tokens."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        return np.exp(nll_nats / num_tokens)


def _perplexity(means: np.ndarray, column: int) -> np.ndarray:
    """Perplexity of one column of nats, over the last axis of `task_scores`."""
    return perplexities(means[..., column], means[..., _TOKENS])


def _finished_candidates(trials: pd.DataFrame) -> list[list[dict[Any, Any]]]:
    """The rows of the finished trials, grouped by candidate: in each group they differ by their seeds."""
    groups: dict[str, list[dict[Any, Any]]] = {}
    for row in trials.to_dict("records"):
        if row["status"] == "finished":
            groups.setdefault(repr([row[name] for name in _CANDIDATE]), []).append(row)
    if not any(rows[0]["method"] == "map" for rows in groups.values()):
        states = ", ".join(f"{n} {status}" for status, n in trials["status"].value_counts().items())
        raise InputError(
            f"{', '.join(trials['run'].unique())}: nothing to report, no fit has finished yet "
            f"(trials: {states or 'none'}); `error` in the table trials says why one failed"
        )
    return list(groups.values())


def _key(row: dict[Any, Any]) -> Key:
    return row["run"], row["trial_id"]


def _mean_scores(
    scores: pd.DataFrame, candidate_of: dict[Key, int], num_seeds: list[int]
) -> tuple[list[str], np.ndarray]:
    """Tasks by name, and `task_scores` as means over each candidate's trials: a ratio of means is a ratio of sums."""
    candidate_n = _candidate_of_rows("task_scores", scores, candidate_of)
    known_n = candidate_n >= 0
    tasks, task_n = np.unique(scores["task"].to_numpy(dtype=object)[known_n], return_inverse=True)
    split_n = np.array([SPLITS.index(split) for split in scores["split"]], dtype=int)[known_n]
    totals_DMLC = np.zeros((len(tasks), len(num_seeds), len(SPLITS), len(_COLUMNS)))
    np.add.at(totals_DMLC, (task_n, candidate_n[known_n], split_n), scores[_COLUMNS].to_numpy(dtype=float)[known_n])
    return tasks.tolist(), totals_DMLC / np.array(num_seeds)[:, None, None]


def _candidate_of_rows(table: str, rows: pd.DataFrame, candidate_of: dict[Key, int]) -> np.ndarray:
    """The candidate of each row's trial; -1 for a trial that has not finished."""
    keys, index_n = sorted_keys(rows, ["run", "trial_id"])
    for run, trial in sorted(candidate_of.keys() - set(keys))[:1]:
        raise InputError(f"{run}: trial {trial} has finished, but results/{table}/{trial}.parquet is missing or empty")
    return np.array([candidate_of.get(key, -1) for key in keys], dtype=int)[index_n]


def _with_seeds(scores: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    """`scores` with the column `seed`; NaN for the zero-shot model, which depends on none."""
    seeded = trials[trials["method"] != "zero_shot"]
    seeds = dict(zip(zip(seeded["run"], seeded["trial_id"], strict=True), seeded["seed"], strict=True))
    keys, index_n = sorted_keys(scores, ["run", "trial_id"])
    return scores.assign(seed=np.array([seeds.get(key, math.nan) for key in keys], dtype=float)[index_n])


def _candidate(rows: list[dict[Any, Any]], means_DLC: np.ndarray) -> Setting:
    """A setting as one candidate made it; `rows` are its seeds."""
    micro_L = _perplexity(means_DLC.sum(axis=0), _NATS)
    keys = [_key(row) for row in rows]
    return Setting(
        method=rows[0]["method"],
        tau=float(rows[0]["tau"]),
        structure=structure_of(rows[0]),
        learning_rate=float(rows[0]["learning_rate"]),
        trials=keys,
        candidate_trials=keys,
        epochs=[row["epochs"] for row in rows],
        best_epochs=[row["best_epoch"] for row in rows],
        hit_max_epochs=any(row["stopped_by"] == "max_epochs" for row in rows),
        validation_perplexity=float(micro_L[VALIDATION]),
        test_perplexity=float(micro_L[TEST]),
        test_macro_perplexity=float(_perplexity(means_DLC[:, TEST], _NATS).mean()),
    )


def _most_fitted_structure(candidates: list[Setting]) -> Structure:
    """The structure of the MAP fits at most values of tau; of several, the one of the first trial."""
    taus: dict[Structure, set[float]] = {}
    for setting in candidates:
        if setting.method == "map":
            taus.setdefault(setting.structure, set()).add(setting.tau)
    return max(taus, key=lambda structure: len(taus[structure]))


def _choose_candidates(candidates: list[Setting], structure: Structure) -> dict[int, list[Key]]:
    """For each setting, in the order of `Summary.settings`: the candidate that is best on validation.

    Returns:
        By the number of the chosen candidate, the trials of all candidates of its setting.
    """
    numbers_of_setting: dict[tuple, list[int]] = {}
    for m, candidate in enumerate(candidates):
        is_fit = (candidate.method, candidate.structure) == ("map", structure)
        group = 0 if candidate.method == "zero_shot" else 1 if is_fit else 2
        tau = -1.0 if math.isnan(candidate.tau) else candidate.tau
        name = (group, candidate.method, repr(candidate.structure), tau)
        numbers_of_setting.setdefault(name, []).append(m)
    chosen = {}
    for name in sorted(numbers_of_setting):
        numbers = numbers_of_setting[name]
        best = min(numbers, key=lambda m: candidates[m].objective)
        chosen[best] = [key for m in numbers for key in candidates[m].trials]
    return chosen


def _scores_of(scores: pd.DataFrame, chosen: list[int], split: str) -> DocumentScores:
    """Documents of one split under the chosen candidates."""
    return align_documents(scores.loc[scores["setting"].isin(chosen) & (scores["split"] == split)], chosen)
