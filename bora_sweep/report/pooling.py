"""From trials to settings: seeds pooled, one setting for each tau, the best one chosen on validation.

D tasks, M settings, L splits (train, validation, test), C columns of `task_scores`.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bora_sweep.errors import InputError
from bora_sweep.report.statistics import Documents, align_documents
from bora_sweep.results import Results

SPLITS = ["train", "validation", "test"]
TRAIN, VALIDATION, TEST = range(3)
_COLUMNS = ["num_documents", "num_tokens", "nll_nats", "floor_nll_nats", "distance_to_global"]
_DOCUMENTS, _TOKENS, _NATS, _FLOOR, _DISTANCE = range(5)
_ALIKE = ["method", "tau", "learning_rate", "parametrization", "solver", "lora_rank", "lora_alpha"]

Key = tuple[str, str]  # run, trial_id


@dataclass(frozen=True)
class Setting:
    """The zero-shot model, or one tau with its seeds pooled: nats and tokens are summed, then divided once."""

    is_fit: bool
    tau: float  # NaN for zero-shot
    learning_rate: float
    seeds: int
    epochs: list[float]
    best_epochs: list[float]
    capped: bool  # a seed stopped at max_epochs
    validation_perplexity: float
    test_perplexity: float
    test_macro_perplexity: float

    @property
    def rank(self) -> float:
        """What selection minimises: validation perplexity, infinite where it is not a number."""
        return math.inf if math.isnan(self.validation_perplexity) else self.validation_perplexity


@dataclass(frozen=True)
class Summary:
    """What a report tells of. Settings ascend in tau, zero-shot first; tasks descend in training documents."""

    settings: list[Setting]
    several_ways: list[float]  # values of tau that were fitted in more than one way
    tasks: list[str]
    num_documents_DL: np.ndarray
    num_tokens_DL: np.ndarray
    perplexity_DM: np.ndarray  # on test
    distance_DM: np.ndarray
    floor_D: np.ndarray  # test perplexity of the true source, NaN where it is not known
    floor: float  # of all tokens, NaN where it is not known for every task
    documents: Documents  # test, their columns in the order of `settings`
    trials: pd.DataFrame  # every trial, finished or not

    @property
    def train_documents_D(self) -> np.ndarray:
        return self.num_documents_DL[:, TRAIN]

    @property
    def fits(self) -> list[int]:
        """Settings that are fits, ascending in tau."""
        return [m for m, setting in enumerate(self.settings) if setting.is_fit]

    @property
    def best(self) -> int:
        """The fit with the lowest validation perplexity."""
        return min(self.fits, key=lambda m: self.settings[m].rank)

    @property
    def best_tau(self) -> float:
        return self.settings[self.best].tau

    @property
    def best_between(self) -> int | None:
        """The fit with the lowest validation perplexity among 0 < tau < inf, where tasks differ and yet share."""
        between = [m for m in self.fits if 0 < self.settings[m].tau < math.inf]
        return min(between, key=lambda m: self.settings[m].rank, default=None)

    @property
    def independent(self) -> int | None:
        return next((m for m in self.fits if self.settings[m].tau == 0), None)

    @property
    def shared(self) -> int | None:
        return next((m for m in self.fits if self.settings[m].tau == math.inf), None)

    @property
    def zero_shot(self) -> int | None:
        return next((m for m, setting in enumerate(self.settings) if not setting.is_fit), None)


def summarise(results: Results) -> Summary:
    """Pools the finished trials.

    Where one tau was fitted in several ways (learning rates, ranks, …), the way with the lowest validation perplexity
    stands for it, as the tau with the lowest stands for the run.

    Raises:
        InputError: No fit has finished, or the trials did not score the same documents.
    """
    ways: dict[str, list[dict[Any, Any]]] = {}
    for row in results.trials.to_dict("records"):
        if row["status"] == "finished":
            ways.setdefault(repr([row[name] for name in _ALIKE]), []).append(row)
    if not any(rows[0]["method"] == "map" for rows in ways.values()):
        states = ", ".join(f"{n} {status}" for status, n in results.trials["status"].value_counts().items())
        raise InputError(
            f"{', '.join(results.trials['run'].unique())}: nothing to report, no fit has finished yet "
            f"(trials: {states or 'none'}); `error` in the table trials says why one failed"
        )
    way_of: dict[Key, int] = {(row["run"], row["trial_id"]): m for m, rows in enumerate(ways.values()) for row in rows}
    tasks, means_DMLC = _means(results.task_scores, way_of, [len(rows) for rows in ways.values()])
    settings = [_setting(rows, means_DMLC[:, m]) for m, rows in enumerate(ways.values())]
    chosen = _one_for_each_tau(settings)
    taus = [setting.tau for setting in settings if setting.is_fit]
    order_D = np.lexsort((np.arange(len(tasks)), -means_DMLC[:, chosen[-1], TRAIN, _DOCUMENTS]))
    means_DMLC = means_DMLC[order_D]
    test_DMC, sizes_DLC = means_DMLC[:, chosen, TEST], means_DMLC[:, chosen[-1]]
    return Summary(
        settings=[settings[m] for m in chosen],
        several_ways=sorted({tau for tau in taus if taus.count(tau) > 1}),
        tasks=[tasks[d] for d in order_D],
        num_documents_DL=sizes_DLC[..., _DOCUMENTS],
        num_tokens_DL=sizes_DLC[..., _TOKENS],
        perplexity_DM=_perplexity(test_DMC, _NATS),
        distance_DM=test_DMC[..., _DISTANCE],
        floor_D=_perplexity(sizes_DLC[:, TEST], _FLOOR),
        floor=float(_perplexity(sizes_DLC[:, TEST].sum(axis=0), _FLOOR)),
        documents=_documents(results.document_scores, way_of, chosen),
        trials=results.trials,
    )


def _means(scores: pd.DataFrame, way_of: dict[Key, int], seeds: list[int]) -> tuple[list[str], np.ndarray]:
    """Tasks by name, and `task_scores` as means over each setting's trials: a ratio of means is a ratio of sums."""
    way_n = _ways("task_scores", scores, way_of)
    known_n = way_n >= 0
    tasks, task_n = np.unique(scores["task"].to_numpy(dtype=object)[known_n], return_inverse=True)
    split_n = np.array([SPLITS.index(split) for split in scores["split"]], dtype=int)[known_n]
    totals_DMLC = np.zeros((len(tasks), len(seeds), len(SPLITS), len(_COLUMNS)))
    np.add.at(totals_DMLC, (task_n, way_n[known_n], split_n), scores[_COLUMNS].to_numpy(dtype=float)[known_n])
    return tasks.tolist(), totals_DMLC / np.array(seeds)[:, None, None]


def _ways(table: str, rows: pd.DataFrame, way_of: dict[Key, int]) -> np.ndarray:
    """The setting of each row's trial, -1 for a trial that has not finished."""
    keys = list(zip(rows["run"], rows["trial_id"], strict=True))
    for run, trial in sorted(way_of.keys() - set(keys))[:1]:
        raise InputError(f"{run}: trial {trial} has finished, but results/{table}/{trial}.parquet is missing or empty")
    return np.array([way_of.get(key, -1) for key in keys], dtype=int)


def _perplexity(means: np.ndarray, column: int) -> np.ndarray:
    """exp(nats / tokens) over the last axis; inf where it overflows, NaN without tokens."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        return np.exp(means[..., column] / means[..., _TOKENS])


def _setting(rows: list[dict[Any, Any]], means_DLC: np.ndarray) -> Setting:
    micro_L = _perplexity(means_DLC.sum(axis=0), _NATS)
    return Setting(
        is_fit=rows[0]["method"] == "map",
        tau=float(rows[0]["tau"]),
        learning_rate=float(rows[0]["learning_rate"]),
        seeds=len(rows),
        epochs=[row["epochs"] for row in rows],
        best_epochs=[row["best_epoch"] for row in rows],
        capped=any(row["stopped_by"] == "max_epochs" for row in rows),
        validation_perplexity=float(micro_L[VALIDATION]),
        test_perplexity=float(micro_L[TEST]),
        test_macro_perplexity=float(_perplexity(means_DLC[:, TEST], _NATS).mean()),
    )


def _one_for_each_tau(settings: list[Setting]) -> list[int]:
    """The lowest validation perplexity stands for each tau; ascending, zero-shot first."""
    by_tau: dict[float, list[int]] = {}
    for m, setting in enumerate(settings):
        by_tau.setdefault(setting.tau if setting.is_fit else -1.0, []).append(m)
    return [min(by_tau[tau], key=lambda m: settings[m].rank) for tau in sorted(by_tau)]


def _documents(scores: pd.DataFrame, way_of: dict[Key, int], chosen: list[int]) -> Documents:
    test = scores.assign(setting=_ways("document_scores", scores, way_of))
    wanted = test["setting"].isin(chosen) & (test["split"] == "test")
    return align_documents(test.loc[wanted], chosen)
