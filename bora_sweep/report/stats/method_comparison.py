"""Methods compared: the fit that represents each, and what training it cost.

A method's cost includes every fit that it started from or was made of.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from bora_sweep.report.stats.summary import Key, Setting, Summary


@dataclass(frozen=True)
class Method:
    """A row of the comparison: of `candidates`, the setting that is best on validation."""

    kind: str
    """`independent`, `shared` or `bora` for MAP fits, else the column `method` of `trials`."""
    setting: int
    candidates: list[int]


@dataclass(frozen=True)
class Cost:
    """Sums over trials; NaN where one of them is not known."""

    train_tokens: float
    train_seconds: float


def compare_methods(summary: Summary) -> list[Method]:
    """Methods, the best on test first; none where there are only zero-shot and the fits over tau.

    A method that was fitted at several ranks has one row at the rank of the fits over tau, and one at the rank that is
    best on validation.
    """
    if not summary.others:
        return []
    usual_rank = summary.structure.lora_rank
    groups: dict[tuple, list[int]] = {}
    for m, setting in enumerate(summary.settings):
        structure = setting.structure
        groups.setdefault((kind_of(setting), structure.lora_variant, structure.prior_groups is None), []).append(m)
    methods = []
    for members in groups.values():
        usual = [m for m in members if summary.settings[m].structure.lora_rank in (None, usual_rank)]
        rows = [members] if usual in ([], members) else [usual, members]
        methods += [_best_of(summary, candidates) for candidates in rows]
    rank_M = summary.chosen_by.measure.rank(summary.chosen_by.test_M)
    return sorted(methods, key=lambda method: rank_M[method.setting])


def kind_of(setting: Setting) -> str:
    """`independent`, `shared`, `per_group`, `three_levels` or `bora` for MAP fits, else `method` of `trials`."""
    if setting.method != "map":
        return setting.method
    if setting.structure.tau_2 is not None:
        return "per_group" if math.isinf(setting.tau) and setting.structure.tau_2 == 0 else "three_levels"
    ends = {0.0: "independent", math.inf: "shared"} if setting.structure.prior_groups is None else {}
    return ends.get(setting.tau, "bora")


def _best_of(summary: Summary, candidates: list[int]) -> Method:
    best = min(candidates, key=lambda m: summary.settings[m].order)
    return Method(kind_of(summary.settings[best]), best, candidates)


def reference_setting(summary: Summary) -> int:
    """The setting that methods are compared with: BoRA at its best tau between the ends.

    Without such a fit it is the best of the BoRA fits with a tau for each prior group, and without these the best end.
    """
    bora = summary.between or [m for m, setting in enumerate(summary.settings) if kind_of(setting) == "bora"]
    return min(bora or summary.fits, key=lambda m: summary.settings[m].order)


def training_cost(trials: pd.DataFrame, keys: Iterable[Key]) -> Cost:
    """Sum over `keys` and all trials that they were made from, directly or not, each counted once.

    Args:
        trials: The table `trials`, with `run`.
        keys: Run and trial_id of each trial.
    """
    table = trials.set_index(["run", "trial_id"])
    started_from = table["started_from"].dropna().to_dict()
    counted, waiting = set(), list(keys)
    while waiting:
        run, trial_id = waiting.pop()
        if (run, trial_id) not in counted:
            counted.add((run, trial_id))
            names = started_from.get((run, trial_id), "").split(",")
            waiting += [(run, name.strip()) for name in names if name.strip()]
    table = table.assign(  # older results have only the rate
        train_tokens=table["train_tokens"].fillna(table["tokens_per_second"] * table["train_seconds"])
    )
    rows = table.reindex(pd.MultiIndex.from_tuples(sorted(counted)))[["train_tokens", "train_seconds"]]
    return Cost(*rows.to_numpy(dtype=float).sum(axis=0).tolist())
