"""A run beside the paper: the numbers of both, where they meet, and how alike they rank.

D tasks, V values of tau.
"""

import itertools
import json
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm, spearmanr

from bora_sweep.report.stats.summary import Summary
from bora_sweep.runs.results import Results

EXACT = 8
"""Pairs up to which a p-value counts every order."""
FEWEST = 10
"""Pairs from which a correlation has an interval."""


@dataclass(frozen=True)
class Rank:
    """Spearman's correlation of n pairs, its 95% interval and its two-sided p-value; NaN where there are too few."""

    rho: float
    n: int
    p: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Curves:
    """Perplexity over ascending tau, of all tasks together and of each."""

    taus: list[float]
    learning_rates: list[float]
    overall_V: np.ndarray
    tasks: list[str]
    perplexity_DV: np.ndarray

    def at(self, taus: Sequence[float]) -> list[int]:
        """The places of these values."""
        return [self.taus.index(tau) for tau in taus]

    def over_lowest(self, taus: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """How far each value lies above the lowest of its own curve at `taus`: of all together, and of each task."""
        at = self.at(taus)
        return (
            self.overall_V / np.nanmin(self.overall_V[at]) - 1,
            self.perplexity_DV / np.nanmin(self.perplexity_DV[:, at], axis=1, keepdims=True) - 1,
        )

    def lowest(self, taus: Sequence[float]) -> dict[float, int]:
        """By each of `taus`: how many tasks are lowest there."""
        known_DV = np.nan_to_num(self.perplexity_DV[:, self.at(taus)], nan=math.inf)
        counts = np.bincount(known_DV.argmin(axis=1), minlength=len(taus))
        return dict(zip(taus, counts.tolist(), strict=True))


@dataclass(frozen=True)
class Beside:
    """The paper's numbers and ours."""

    paper: Curves
    ours: Curves
    ours_is: str
    """What ours are, in words."""

    @cached_property
    def taus(self) -> list[float]:
        """Those that both have."""
        return [tau for tau in self.paper.taus if tau in self.ours.taus]

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """The places of each task that both have, in the paper's order: names agree but for case and full stops."""
        place = {name_key(task): d for d, task in enumerate(self.ours.tasks)}
        return [(d, place[key]) for d, task in enumerate(self.paper.tasks) if (key := name_key(task)) in place]

    @property
    def tau_rank(self) -> Rank:
        """Over the values of tau that both have."""
        return spearman(*(curves.overall_V[curves.at(self.taus)] for curves in (self.paper, self.ours)))

    def task_rank(self, tau: float) -> Rank:
        """Over the tasks that both have."""
        columns = (curves.perplexity_DV[:, curves.taus.index(tau)] for curves in (self.paper, self.ours))
        return spearman(
            *(column[list(rows)] for column, rows in zip(columns, zip(*self.pairs, strict=True), strict=True))
        )


def beside_paper(summary: Summary, results: Results) -> Beside:
    """A run's MAP fits of one structure beside the paper's."""
    return Beside(_paper(), *_ours(summary, results))


def published(name: str) -> pd.DataFrame:
    """A table of the paper's: `table_1`, `table_a1`, `task_sizes`."""
    with (files("bora_sweep.report.paper") / "published" / f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def _paper() -> Curves:
    overall = published("table_1").sort_values("tau")
    tasks = published("table_a1").pivot_table(index="task", columns="tau", values="perplexity")
    return Curves(
        taus=overall["tau"].astype(float).tolist(),
        learning_rates=overall["learning_rate"].tolist(),
        overall_V=overall["perplexity"].to_numpy(),
        tasks=[str(task) for task in tasks.index],
        perplexity_DV=tasks.to_numpy(),
    )


def _ours(summary: Summary, results: Results) -> tuple[Curves, str]:
    """What the run's protocol reports, where it reports otherwise than by test perplexity; and what it is."""
    settings = [summary.settings[m] for m in summary.fits]
    overall_V = np.array([setting.test_perplexity for setting in settings])
    perplexity_DV, what = summary.perplexity_DM[:, summary.fits], "test perplexity, over all tokens"
    trials = results.trials.set_index(["run", "trial_id"])
    fits = [key for setting in settings for key in setting.trials]
    if "reported_perplexity" in trials and trials.loc[fits, "reported_perplexity"].notna().all():
        own = results.task_scores.dropna(subset=["reported_perplexity"]).set_index(["run", "trial_id"])
        means = [own.loc[s.trials].groupby("task")["reported_perplexity"].mean() for s in settings]
        overall_V = np.array([trials.loc[s.trials, "reported_perplexity"].mean() for s in settings])
        perplexity_DV = pd.concat(means, axis=1).loc[summary.tasks].to_numpy()
        what = str(trials.loc[fits[0], "reported_as"])
    rates = [setting.learning_rate for setting in settings]
    return Curves([setting.tau for setting in settings], rates, overall_V, summary.tasks, perplexity_DV), what


def name_key(name: str) -> str:
    """What two spellings of one name share: `Abid Q. Raja`, `abid q raja`."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().replace(".", " ").split())


def spearman(x: np.ndarray, y: np.ndarray) -> Rank:
    """p over every order of up to `EXACT` pairs, by Student's t beyond; the interval of Bonett and Wright (2000)."""
    n = len(x)
    if n < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Rank(math.nan, n, math.nan)
    found = spearmanr(x, y)
    rho, p = float(found.statistic), float(found.pvalue)  # type: ignore[attr-defined]
    if n <= EXACT:
        ranks_x, ranks_y = pd.Series(x).rank().to_numpy(), pd.Series(y).rank().to_numpy()
        products = np.array(list(itertools.permutations(ranks_y - ranks_y.mean()))) @ (ranks_x - ranks_x.mean())
        p = float(np.mean(np.abs(products) >= abs(products[0]) - 1e-9))  # the first is the order observed
    if n < FEWEST:
        return Rank(rho, n, p)
    half = float(norm.ppf(0.975)) * math.sqrt((1 + rho**2 / 2) / (n - 3))
    z = math.atanh(min(max(rho, -1 + 1e-12), 1 - 1e-12))
    return Rank(rho, n, p, math.tanh(z - half), math.tanh(z + half))


SETTINGS: dict[str, Any] = {
    "protocol": "published_code",
    "data.source": "talk_of_norway",
    "data.selection": "published_code",
    "data.min_characters": 41,
    "model.name": "facebook/opt-350m",
    "model.max_tokens": 128,
    "lora.rank": 16,
    "lora.alpha": 16.0,
    "lora.target_modules": ["q_proj", "v_proj"],
    "prior.parametrization": "centered",
    "train.lr_per_tau": 1e-5,
    "train.learning_rate": 1e-4,
    "train.batch_size": 64,
    "train.max_grad_norm": None,
    "train.max_epochs": 1000,
    "train.patience": 8,
}
"""What the paper's numbers were made with, in this package's keys."""


def settings_that_differ(summary: Summary) -> list[tuple[str, Any, Any]]:
    """(key, the paper's, this run's), this run's by its best fit; a model in a folder goes by the folder's name."""
    run, trial = summary.settings[summary.best].trials[0]
    rows = summary.trials
    (text,) = rows.loc[(rows["run"] == run) & (rows["trial_id"] == trial), "config_json"]
    config = json.loads(text) if isinstance(text, str) else {}
    beside = [(key, value, _at(config, key)) for key, value in SETTINGS.items()]
    return [(key, paper, ours) for key, paper, ours in beside if _plain(key, paper) != _plain(key, ours)]


def _plain(key: str, value: Any) -> Any:
    return str(value).rstrip("/").rpartition("/")[2] if key == "model.name" else value


def _at(config: dict[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    return config.get(section, {}).get(name) if name else config.get(section)
