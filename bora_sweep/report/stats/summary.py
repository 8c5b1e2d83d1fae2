"""From trials to settings: seeds pooled, one way chosen for each setting, the best tau chosen, all on validation.

D tasks, M settings, L splits (train, validation, test), C columns of `task_scores`.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from bora_sweep.errors import InputError
from bora_sweep.report.stats.documents import Documents, align_documents, ranked
from bora_sweep.runs.results import Results

SPLITS = ["train", "validation", "test"]
TRAIN, VALIDATION, TEST = range(3)
_COLUMNS = ["num_documents", "num_tokens", "nll_nats", "floor_nll_nats", "distance_to_global"]
_DOCUMENTS, _TOKENS, _NATS, _FLOOR, _DISTANCE = range(5)
_STRUCTURE = ["lora_rank", "lora_variant", "prior_groups"]
_ALIKE = ["method", "tau", *_STRUCTURE, "learning_rate", "parametrization", "solver", "lora_alpha"]

Key = tuple[str, str]  # run, trial_id
Structure = tuple[int | None, str | None, str | None]  # lora_rank, lora_variant, prior_groups


@dataclass(frozen=True)
class Setting:
    """One method at one tau and structure, seeds pooled: nats and tokens are summed, then divided once."""

    method: str
    tau: float  # NaN where there is no prior
    structure: Structure
    learning_rate: float
    trials: list[Key]  # its seeds
    tried: list[Key]  # those, and the trials of the ways (learning rates, …) that lost to this one
    epochs: list[float]
    best_epochs: list[float]
    capped: bool  # a seed stopped at max_epochs
    validation_perplexity: float
    test_perplexity: float
    test_macro_perplexity: float

    @property
    def seeds(self) -> int:
        return len(self.trials)

    @property
    def objective(self) -> float:
        """What selection minimises: validation perplexity, infinite where it is not a number."""
        return math.inf if math.isnan(self.validation_perplexity) else self.validation_perplexity


@dataclass(frozen=True)
class Summary:
    """What a report tells of: zero-shot, MAP fits in ascending tau, other settings; tasks by training documents."""

    settings: list[Setting]
    structure: Structure  # of the MAP fits that are compared over tau
    tasks: list[str]
    num_documents_DL: np.ndarray
    num_tokens_DL: np.ndarray
    perplexity_DM: np.ndarray  # on test
    distance_DM: np.ndarray
    floor_D: np.ndarray  # test perplexity of the true source, NaN where it is not known
    floor: float  # of all tokens, NaN where it is not known for every task
    documents: Documents  # test, their columns in the order of `settings`
    validation_documents: Documents  # likewise
    trials: pd.DataFrame  # every trial, finished or not

    @property
    def train_documents_D(self) -> np.ndarray:
        return self.num_documents_DL[:, TRAIN]

    @property
    def fits(self) -> list[int]:
        """The MAP fits of one structure, ascending in tau."""
        return [m for m, s in enumerate(self.settings) if s.method == "map" and s.structure == self.structure]

    @property
    def others(self) -> list[int]:
        """Settings that are neither zero-shot nor one of `fits`: other methods, ranks, variants and groups."""
        return [m for m in range(len(self.settings)) if m != self.zero_shot and m not in self.fits]

    @property
    def several_ways(self) -> list[int]:
        """Settings but zero-shot for which one of several ways was chosen."""
        return [m for m in (*self.fits, *self.others) if len(self.settings[m].tried) > self.settings[m].seeds]

    @property
    def best(self) -> int:
        """The fit with the lowest validation perplexity."""
        return min(self.fits, key=lambda m: self.settings[m].objective)

    @property
    def best_tau(self) -> float:
        return self.settings[self.best].tau

    @property
    def between(self) -> list[int]:
        """Fits at 0 < tau < inf, where tasks differ and yet share."""
        return [m for m in self.fits if 0 < self.settings[m].tau < math.inf]

    @property
    def best_between(self) -> int | None:
        """The one of them with the lowest validation perplexity."""
        return min(self.between, key=lambda m: self.settings[m].objective, default=None)

    @property
    def independent(self) -> int | None:
        return next((m for m in self.fits if self.settings[m].tau == 0), None)

    @property
    def shared(self) -> int | None:
        return next((m for m in self.fits if self.settings[m].tau == math.inf), None)

    @property
    def zero_shot(self) -> int | None:
        return next((m for m, setting in enumerate(self.settings) if setting.method == "zero_shot"), None)


def summarise(results: Results) -> Summary:
    """Pools the finished trials.

    A setting is what one method made at one tau, rank, variant and grouping of the prior. Where it was made in several
    ways (learning rates, solvers, …), the way with the lowest validation perplexity stands for it, as the tau with the
    lowest stands for the run. Fits are compared over tau in the structure that was fitted at most values of it.

    Raises:
        InputError: No MAP fit has finished, or the trials did not score the same documents.
    """
    trials = results.trials.assign(lora_variant=results.trials["lora_variant"].fillna("lora"))  # null in older results
    ways: dict[str, list[dict[Any, Any]]] = {}
    for row in trials.to_dict("records"):
        if row["status"] == "finished":
            ways.setdefault(repr([row[name] for name in _ALIKE]), []).append(row)
    if not any(rows[0]["method"] == "map" for rows in ways.values()):
        states = ", ".join(f"{n} {status}" for status, n in trials["status"].value_counts().items())
        raise InputError(
            f"{', '.join(trials['run'].unique())}: nothing to report, no fit has finished yet "
            f"(trials: {states or 'none'}); `error` in the table trials says why one failed"
        )
    way_of: dict[Key, int] = {_key(row): m for m, rows in enumerate(ways.values()) for row in rows}
    tasks, means_DMLC = _means(results.task_scores, way_of, [len(rows) for rows in ways.values()])
    settings = [_setting(rows, means_DMLC[:, m]) for m, rows in enumerate(ways.values())]
    structure = _main_structure(settings)
    chosen = _one_way_for_each(settings, structure)
    means_DMLC = means_DMLC[:, list(chosen)]
    order_D = np.lexsort((np.arange(len(tasks)), -means_DMLC[:, 0, TRAIN, _DOCUMENTS]))
    means_DMLC = means_DMLC[order_D]
    test_DMC, sizes_DLC = means_DMLC[:, :, TEST], means_DMLC[:, 0]
    scores = _with_seeds(results.document_scores, trials)
    scores = scores.assign(setting=_ways("document_scores", scores, way_of))
    return Summary(
        settings=[replace(settings[m], tried=tried) for m, tried in chosen.items()],
        structure=structure,
        tasks=[tasks[d] for d in order_D],
        num_documents_DL=sizes_DLC[..., _DOCUMENTS],
        num_tokens_DL=sizes_DLC[..., _TOKENS],
        perplexity_DM=_perplexity(test_DMC, _NATS),
        distance_DM=test_DMC[..., _DISTANCE],
        floor_D=_perplexity(sizes_DLC[:, TEST], _FLOOR),
        floor=float(_perplexity(sizes_DLC[:, TEST].sum(axis=0), _FLOOR)),
        documents=_documents(scores, list(chosen), "test"),
        validation_documents=_documents(scores, list(chosen), "validation"),
        trials=trials,
    )


def structure_of(row: dict[Any, Any]) -> Structure:
    """Rank, variant and grouping of the prior of a row of `trials`; None where not known, and for zero-shot."""
    known = [None if pd.isna(row[name]) or row["method"] == "zero_shot" else row[name] for name in _STRUCTURE]
    return None if known[0] is None else int(known[0]), known[1], known[2]


def _key(row: dict[Any, Any]) -> Key:
    return row["run"], row["trial_id"]


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
    keys, place_n = ranked(rows, ["run", "trial_id"])
    for run, trial in sorted(way_of.keys() - set(keys))[:1]:
        raise InputError(f"{run}: trial {trial} has finished, but results/{table}/{trial}.parquet is missing or empty")
    return np.array([way_of.get(key, -1) for key in keys], dtype=int)[place_n]


def _with_seeds(scores: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    """With `seed`; the zero-shot model depends on none."""
    seeded = trials[trials["method"] != "zero_shot"]
    seeds = dict(zip(zip(seeded["run"], seeded["trial_id"], strict=True), seeded["seed"], strict=True))
    keys, place_n = ranked(scores, ["run", "trial_id"])
    return scores.assign(seed=np.array([seeds.get(key, math.nan) for key in keys], dtype=float)[place_n])


def _perplexity(means: np.ndarray, column: int) -> np.ndarray:
    """exp(nats / tokens) over the last axis; inf where it overflows, NaN without tokens."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        return np.exp(means[..., column] / means[..., _TOKENS])


def _setting(rows: list[dict[Any, Any]], means_DLC: np.ndarray) -> Setting:
    micro_L = _perplexity(means_DLC.sum(axis=0), _NATS)
    keys = [_key(row) for row in rows]
    return Setting(
        method=rows[0]["method"],
        tau=float(rows[0]["tau"]),
        structure=structure_of(rows[0]),
        learning_rate=float(rows[0]["learning_rate"]),
        trials=keys,
        tried=keys,
        epochs=[row["epochs"] for row in rows],
        best_epochs=[row["best_epoch"] for row in rows],
        capped=any(row["stopped_by"] == "max_epochs" for row in rows),
        validation_perplexity=float(micro_L[VALIDATION]),
        test_perplexity=float(micro_L[TEST]),
        test_macro_perplexity=float(_perplexity(means_DLC[:, TEST], _NATS).mean()),
    )


def _main_structure(settings: list[Setting]) -> Structure:
    """The structure of the MAP fits at most values of tau; of several, the one of the first trial."""
    taus: dict[Structure, set[float]] = {}
    for setting in settings:
        if setting.method == "map":
            taus.setdefault(setting.structure, set()).add(setting.tau)
    return max(taus, key=lambda structure: len(taus[structure]))


def _one_way_for_each(settings: list[Setting], main: Structure) -> dict[int, list[Key]]:
    """The way with the lowest validation perplexity, and the trials of all ways, in the order of `Summary.settings`."""
    ways: dict[tuple, list[int]] = {}
    for m, setting in enumerate(settings):
        group = 0 if setting.method == "zero_shot" else 1 if (setting.method, setting.structure) == ("map", main) else 2
        tau = -1.0 if math.isnan(setting.tau) else setting.tau
        ways.setdefault((group, setting.method, repr(setting.structure), tau), []).append(m)
    return {
        min(ways[which], key=lambda m: settings[m].objective): [key for m in ways[which] for key in settings[m].trials]
        for which in sorted(ways)
    }


def _documents(scores: pd.DataFrame, chosen: list[int], split: str) -> Documents:
    return align_documents(scores.loc[scores["setting"].isin(chosen) & (scores["split"] == split)], chosen)
