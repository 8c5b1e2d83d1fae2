"""A run compared with the paper: the numbers of both, where they match, and how alike they rank.

D tasks, V values of tau.
"""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files

import numpy as np
import pandas as pd

from bora_sweep.config import PERPLEXITY
from bora_sweep.report.stats.rank_correlation import RankCorrelation, spearman
from bora_sweep.report.stats.summary import Summary
from bora_sweep.runs.results import Results


@dataclass(frozen=True)
class TauCurves:
    """Perplexity over ascending tau, of all tasks together and of each."""

    taus: list[float]
    learning_rates: list[float]
    overall_V: np.ndarray
    tasks: list[str]
    perplexity_DV: np.ndarray

    def indices(self, taus: Sequence[float]) -> list[int]:
        """The indices of these values of tau."""
        return [self.taus.index(tau) for tau in taus]

    def above_lowest(self, taus: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """How far each value lies above the lowest at `taus`, as a fraction.

        Returns:
            Shape V, of all tasks together; shape DV, each task above its own lowest.
        """
        at = self.indices(taus)
        return (
            self.overall_V / np.nanmin(self.overall_V[at]) - 1,
            self.perplexity_DV / np.nanmin(self.perplexity_DV[:, at], axis=1, keepdims=True) - 1,
        )

    def tasks_lowest_at(self, taus: Sequence[float]) -> dict[float, int]:
        """By each of `taus`: the number of tasks whose perplexity is lowest there."""
        known_DV = np.nan_to_num(self.perplexity_DV[:, self.indices(taus)], nan=math.inf)
        counts = np.bincount(known_DV.argmin(axis=1), minlength=len(taus))
        return dict(zip(taus, counts.tolist(), strict=True))


@dataclass(frozen=True)
class PaperComparison:
    """The paper's numbers and this run's."""

    paper: TauCurves
    ours: TauCurves
    our_measure: str
    """What this run's numbers are, in words."""

    @cached_property
    def taus(self) -> list[float]:
        """The values of tau that both have."""
        return [tau for tau in self.paper.taus if tau in self.ours.taus]

    @cached_property
    def task_pairs(self) -> list[tuple[int, int]]:
        """Indices of each task that both have, in the paper's order. Names match but for case and full stops."""
        number_of = {name_key(task): d for d, task in enumerate(self.ours.tasks)}
        return [(d, number_of[key]) for d, task in enumerate(self.paper.tasks) if (key := name_key(task)) in number_of]

    @property
    def tau_correlation(self) -> RankCorrelation:
        """Of the overall perplexities, over the values of tau that both have."""
        return spearman(*(curves.overall_V[curves.indices(self.taus)] for curves in (self.paper, self.ours)))

    def task_correlation(self, tau: float) -> RankCorrelation:
        """Of the tasks' perplexities at one tau, over the tasks that both have."""
        columns = (curves.perplexity_DV[:, curves.taus.index(tau)] for curves in (self.paper, self.ours))
        return spearman(
            *(column[list(rows)] for column, rows in zip(columns, zip(*self.task_pairs, strict=True), strict=True))
        )


def compare_with_paper(summary: Summary, results: Results) -> PaperComparison:
    """A run's MAP fits over tau compared with the paper's."""
    return PaperComparison(_paper_curves(), *_our_curves(summary, results))


def published_table(name: str) -> pd.DataFrame:
    """A table of the paper: `table_1`, `table_a1` or `task_sizes`."""
    with (files("bora_sweep.report.paper") / "published" / f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def _paper_curves() -> TauCurves:
    overall = published_table("table_1").sort_values("tau")
    tasks = published_table("table_a1").pivot_table(index="task", columns="tau", values="perplexity")
    return TauCurves(
        taus=overall["tau"].astype(float).tolist(),
        learning_rates=overall["learning_rate"].tolist(),
        overall_V=overall["perplexity"].to_numpy(),
        tasks=[str(task) for task in tasks.index],
        perplexity_DV=tasks.to_numpy(),
    )


def _our_curves(summary: Summary, results: Results) -> tuple[TauCurves, str]:
    """What the run's protocol reports, test perplexity or another number, and what that is in words."""
    settings = [summary.settings[m] for m in summary.fits]
    scores = summary.scores[PERPLEXITY]
    overall_V, perplexity_DV = scores.test_M[summary.fits], scores.test_DM[:, summary.fits]
    measure = "test perplexity, over all tokens"
    trials = results.trials.set_index(["run", "trial_id"])
    fits = [key for setting in settings for key in setting.trials]
    if "reported_perplexity" in trials and trials.loc[fits, "reported_perplexity"].notna().all():
        reported = results.task_scores.dropna(subset=["reported_perplexity"]).set_index(["run", "trial_id"])
        means = [reported.loc[s.trials].groupby("task")["reported_perplexity"].mean() for s in settings]
        overall_V = np.array([trials.loc[s.trials, "reported_perplexity"].mean() for s in settings])
        perplexity_DV = pd.concat(means, axis=1).reindex(summary.tasks).to_numpy()
        measure = str(trials.loc[fits[0], "reported_as"])
    rates = [setting.learning_rate for setting in settings]
    taus = [setting.tau for setting in settings]
    scored = np.flatnonzero(~np.isnan(perplexity_DV).all(axis=1))  # the others have no test documents
    return TauCurves(taus, rates, overall_V, [summary.tasks[d] for d in scored], perplexity_DV[scored]), measure


def name_key(name: str) -> str:
    """What two spellings of one name have in common: `Abid Q. Raja`, `abid q raja`."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().replace(".", " ").split())


def overall_frame(comparison: PaperComparison) -> pd.DataFrame:
    """Table 1: a row for each tau of either, with how far each value lies above its own lowest at the common tau."""
    columns = {}
    for name, curves in (("paper", comparison.paper), ("ours", comparison.ours)):
        above_V = curves.above_lowest(comparison.taus)[0] if comparison.taus else [math.nan] * len(curves.taus)
        columns[f"{name}_learning_rate"] = pd.Series(curves.learning_rates, curves.taus)
        columns[name] = pd.Series(curves.overall_V, curves.taus)
        columns[f"{name}_above_lowest"] = pd.Series(above_V, curves.taus)
    frame = pd.DataFrame(columns).sort_index()
    frame.insert(0, "tau", frame.index)
    return frame.assign(ratio=frame["ours"] / frame["paper"]).reset_index(drop=True)


def task_frame(comparison: PaperComparison) -> pd.DataFrame:
    """Table A.1: a row for each task and tau that both have."""
    paper, ours, taus = comparison.paper, comparison.ours, comparison.taus
    rows = [
        (ours.tasks[e], tau, paper.perplexity_DV[d, v], ours.perplexity_DV[e, w])
        for d, e in comparison.task_pairs
        for tau, v, w in zip(taus, paper.indices(taus), ours.indices(taus), strict=True)
    ]
    frame = pd.DataFrame(rows, columns=["task", "tau", "paper", "ours"])
    return frame.assign(ratio=frame["ours"] / frame["paper"])
