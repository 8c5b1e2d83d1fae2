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

from bora_sweep.config import PERPLEXITY
from bora_sweep.errors import InputError
from bora_sweep.report.stats.document_scores import sorted_keys, values_of
from bora_sweep.report.stats.learning import learning_curves
from bora_sweep.report.stats.measure import Measure, measure_of
from bora_sweep.report.stats.pool_scores import Sums, pool_scores, ratio
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
from bora_sweep.report.stats.unseen import unseen_tasks
from bora_sweep.runs.requests import USER
from bora_sweep.runs.results import Results, objective_name

_COLUMNS = ["num_documents", "num_tokens", "nll_nats", "floor_nll_nats", "distance_to_global"]
_DOCUMENTS, _TOKENS, _NATS, _FLOOR, _DISTANCE = range(5)
_CANDIDATE = ["method", "tau", *Structure._fields, "learning_rate", "parametrization", "solver", "lora_alpha"]
"""Columns of `trials` in which the seeds of one candidate agree."""


def summarise(results: Results) -> Summary:
    """Pool the finished trials into settings.

    Of a setting's candidates the one that is best on validation represents it. Fits are compared over tau in the
    structure that was fitted at most values of tau.

    Raises:
        InputError: No MAP fit has finished, the trials did not score the same documents by the same metrics, or tau was
            not chosen by the same measure in all of them.
    """
    trials = results.trials.assign(lora_variant=results.trials["lora_variant"].fillna("lora"))  # null in older results
    rows_of_candidate = _finished_candidates(trials)
    chosen_by = _objective(rows_of_candidate)
    candidate_of = {_key(row): m for m, rows in enumerate(rows_of_candidate) for row in rows}
    tasks, means_DMLC = _mean_scores(results.task_scores, candidate_of, [len(rows) for rows in rows_of_candidate])
    documents = _documents(results, trials, candidate_of)
    objective_M = _objectives(chosen_by, documents, means_DMLC)
    perplexity_M = _perplexity(means_DMLC[:, :, VALIDATION].sum(axis=0), _NATS)
    pairs = zip(objective_M.tolist(), np.nan_to_num(perplexity_M, nan=math.inf).tolist(), strict=True)
    candidates = [_candidate(rows, *pair) for rows, pair in zip(rows_of_candidate, pairs, strict=True)]
    structure = _most_fitted_structure(candidates)
    chosen = _choose_candidates(candidates, structure)
    means_DMLC = means_DMLC[:, list(chosen)]
    order_D = np.lexsort((np.arange(len(tasks)), -means_DMLC[:, 0, TRAIN, _DOCUMENTS]))
    sizes_DLC, test_DMC = means_DMLC[order_D, 0], means_DMLC[order_D, :, TEST]
    nats_DML, tokens_DML = means_DMLC[..., _NATS], means_DMLC[..., _TOKENS]
    sums_of = {PERPLEXITY: Sums(*(part[..., i] for i in (VALIDATION, TEST) for part in (nats_DML, tokens_DML)))}
    names = [chosen_by.name, *(name for name in documents if name != chosen_by.name)]
    summary = Summary(
        settings=_with_curves(
            [replace(candidates[m], candidate_trials=keys) for m, keys in chosen.items()], results.curves
        ),
        structure=structure,
        tasks=[tasks[d] for d in order_D],
        num_documents_DL=sizes_DLC[..., _DOCUMENTS],
        num_tokens_DL=sizes_DLC[..., _TOKENS],
        distance_DM=np.where(test_DMC[..., _DOCUMENTS] > 0, test_DMC[..., _DISTANCE], np.nan),
        floor_D=_perplexity(sizes_DLC[:, TEST], _FLOOR),
        floor=float(_perplexity(sizes_DLC[:, TEST].sum(axis=0), _FLOOR)),
        scores={
            name: pool_scores(measure_of(name), documents[name], list(chosen), tasks, order_D, sums_of.get(name))
            for name in names
        },
        trials=trials,
        unseen=None,
    )
    return replace(summary, unseen=unseen_tasks(results.task_scores, summary.settings[summary.best].trials))


def _objective(rows_of_candidate: list[list[dict[Any, Any]]]) -> Measure:
    """The measure that chose tau, in all trials the same."""
    run_of = {objective_name(row): row["run"] for rows in rows_of_candidate for row in rows}
    if len(run_of) > 1:
        (one, first), (other, second), *_ = sorted(run_of.items())
        raise InputError(
            f"{first} chose tau by {one}, {second} by {other} (search.objective): report runs of one objective together"
        )
    return measure_of(next(iter(run_of)))


def _documents(results: Results, trials: pd.DataFrame, candidate_of: dict[Key, int]) -> dict[str, pd.DataFrame]:
    """By measure, perplexity first: the finished trials' rows, with `seed` and `setting`, the number of a candidate."""
    predictions = results.predictions.assign(setting=_candidate_of_rows(results.predictions, candidate_of))
    rows_of: dict[str, pd.DataFrame] = {PERPLEXITY: results.document_scores}
    rows_of |= {str(name): rows for name, rows in predictions.loc[predictions["setting"] >= 0].groupby("metric")}
    documents = {}
    for name, rows in rows_of.items():
        kind = "document_scores" if name == PERPLEXITY else "predictions"
        _check_trials(rows, candidate_of, kind, "missing or empty" if name == PERPLEXITY else f"without {name} scores")
        documents[name] = _with_seeds(rows, trials).assign(setting=_candidate_of_rows(rows, candidate_of))
    return documents


def _objectives(chosen_by: Measure, documents: dict[str, pd.DataFrame], means_DMLC: np.ndarray) -> np.ndarray:
    """What selection minimises, of each of M candidates."""
    if not chosen_by.is_metric:
        return chosen_by.rank(_perplexity(means_DMLC[:, :, VALIDATION].sum(axis=0), _NATS))
    if chosen_by.name not in documents:
        raise InputError(f"search.objective={chosen_by.name} chose tau, but no finished trial has scores by it")
    rows = documents[chosen_by.name].query("split == 'validation'")
    value_n, weight_n = values_of(rows, chosen_by)
    setting_n, num_candidates = rows["setting"].to_numpy(), means_DMLC.shape[1]
    value_M, weight_M = (np.bincount(setting_n, part_n, num_candidates) for part_n in (value_n, weight_n))
    return chosen_by.rank(chosen_by.level(ratio(value_M, weight_M)))


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
    _check_trials(scores, candidate_of, "task_scores", "missing or empty")
    candidate_n = _candidate_of_rows(scores, candidate_of)
    known_n = (candidate_n >= 0) & (scores["num_documents"] > 0).to_numpy()
    tasks, task_n = np.unique(scores["task"].to_numpy(dtype=object)[known_n], return_inverse=True)
    split_n = np.array([SPLITS.index(split) for split in scores["split"]], dtype=int)[known_n]
    totals_DMLC = np.zeros((len(tasks), len(num_seeds), len(SPLITS), len(_COLUMNS)))
    np.add.at(totals_DMLC, (task_n, candidate_n[known_n], split_n), scores[_COLUMNS].to_numpy(dtype=float)[known_n])
    return tasks.tolist(), totals_DMLC / np.array(num_seeds)[:, None, None]


def _check_trials(rows: pd.DataFrame, candidate_of: dict[Key, int], table: str, trouble: str) -> None:
    """Refuse a finished trial that has no row."""
    keys, _ = sorted_keys(rows, ["run", "trial_id"])
    for run, trial in sorted(candidate_of.keys() - set(keys))[:1]:
        raise InputError(f"{run}: trial {trial} has finished, but results/{table}/{trial}.parquet is {trouble}")


def _candidate_of_rows(rows: pd.DataFrame, candidate_of: dict[Key, int]) -> np.ndarray:
    """The candidate of each row's trial; -1 for a trial that has not finished."""
    keys, index_n = sorted_keys(rows, ["run", "trial_id"])
    return np.array([candidate_of.get(key, -1) for key in keys], dtype=int)[index_n]


def _with_seeds(scores: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    """`scores` with the column `seed`; NaN for the zero-shot model, which depends on none."""
    seeded = trials[trials["method"] != "zero_shot"]
    seeds = dict(zip(zip(seeded["run"], seeded["trial_id"], strict=True), seeded["seed"], strict=True))
    keys, index_n = sorted_keys(scores, ["run", "trial_id"])
    return scores.assign(seed=np.array([seeds.get(key, math.nan) for key in keys], dtype=float)[index_n])


def _with_curves(settings: list[Setting], curves: pd.DataFrame) -> list[Setting]:
    """`settings` with the learning curves of their trials."""
    curve_of = learning_curves(curves, [key for setting in settings for key in setting.trials])
    return [replace(one, curves=[curve_of[key] for key in one.trials if key in curve_of]) for one in settings]


def _candidate(rows: list[dict[Any, Any]], objective: float, perplexity: float) -> Setting:
    """A setting as one candidate made it; `rows` are its seeds."""
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
        still_improving=any(row["stopped_by"] == "max_epochs" and row["best_epoch"] == row["epochs"] for row in rows),
        stopped_by_user=any(row["stopped_by"] == USER for row in rows),
        curves=[],
        objective=objective,
        validation_perplexity=perplexity,
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
        best = min(numbers, key=lambda m: candidates[m].order)
        chosen[best] = [key for m in numbers for key in candidates[m].trials]
    return chosen
