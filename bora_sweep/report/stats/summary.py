"""A run's scores by setting and measure: what the report compares, and which settings play which part.

D tasks, M settings, L splits (train, validation, test).
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bora_sweep.report.stats.document_scores import DocumentScores
from bora_sweep.report.stats.learning import LearningCurve
from bora_sweep.report.stats.measure import Measure
from bora_sweep.report.stats.unseen import Unseen

SPLITS = ["train", "validation", "test"]
TRAIN, VALIDATION, TEST = range(3)

Key = tuple[str, str]  # run, trial_id


class Structure(NamedTuple):
    """What the adapters and their prior are; None where it is not known, and for the zero-shot model."""

    lora_rank: int | None
    lora_variant: str | None
    prior_groups: str | None
    tau_2: float | None = None
    """Of groups of tasks; None where there is no such level: also at tau_2 = inf and at tau = 0."""


@dataclass(frozen=True)
class Setting:
    """One method at one tau and structure, seeds pooled."""

    method: str
    tau: float
    """NaN where there is no prior."""
    structure: Structure
    learning_rate: float
    trials: list[Key]
    """One for each seed."""
    candidate_trials: list[Key]
    """`trials`, and those with another learning rate, solver, … that validation did not choose."""
    epochs: list[float]
    best_epochs: list[float]
    still_improving: bool
    """A seed stopped at train.max_epochs, and its last epoch was its best."""
    stopped_by_user: bool
    """A seed was ended by `bora-sweep stop`, whatever it would have learnt yet."""
    curves: list[LearningCurve]
    """Of the seeds that have one."""
    objective: float
    """What selection minimises, on validation: perplexity, or minus the mean score of the metric that chose tau.
    Infinite where it is not known."""
    validation_perplexity: float
    """It decides between equal objectives."""

    @property
    def order(self) -> tuple[float, float]:
        """What settings are sorted by, the best first."""
        return self.objective, self.validation_perplexity

    @property
    def seeds(self) -> int:
        return len(self.trials)


@dataclass(frozen=True)
class Scores:
    """What one measure says of every setting and task: sums over documents and seeds, divided once."""

    measure: Measure
    validation: DocumentScores
    """Columns in the order of `Summary.settings`."""
    test: DocumentScores
    """Columns in the order of `Summary.settings`."""
    validation_M: np.ndarray
    """Levels (perplexity, or the mean score), of all validation documents."""
    test_M: np.ndarray
    """Levels of all test documents."""
    test_DM: np.ndarray
    """Levels of each task's test documents; NaN where it has none."""


@dataclass(frozen=True)
class Summary:
    """A run's scores by setting and task.

    Settings are in the order: zero-shot, the MAP fits in ascending tau, all others. Tasks are in descending order of
    their training documents.
    """

    settings: list[Setting]
    structure: Structure
    """The structure of the MAP fits that are compared over tau."""
    tasks: list[str]
    num_documents_DL: np.ndarray
    num_tokens_DL: np.ndarray
    distance_DM: np.ndarray
    """Euclidean distance of the task's adapter to the global one; NaN for a task without test documents."""
    floor_D: np.ndarray
    """Test perplexity of the source that wrote the text; NaN where it is not known."""
    floor: float
    """The same over all tokens; NaN where it is not known for every task."""
    scores: dict[str, Scores]
    """By the measure's name: first the one that chose tau, then the others."""
    trials: pd.DataFrame
    """Every trial, finished or not."""
    unseen: Unseen | None
    """Tasks that were left out of the best fit; None where no fit left tasks out."""

    @property
    def train_documents_D(self) -> np.ndarray:
        return self.num_documents_DL[:, TRAIN]

    @property
    def chosen_by(self) -> Scores:
        """The scores by the measure that chose tau."""
        return next(iter(self.scores.values()))

    @property
    def has_metrics(self) -> bool:
        """Something beside perplexity was measured."""
        return len(self.scores) > 1

    @property
    def fits(self) -> list[int]:
        """The MAP fits with `structure`, in ascending tau."""
        return [m for m, s in enumerate(self.settings) if s.method == "map" and s.structure == self.structure]

    @property
    def others(self) -> list[int]:
        """Settings that are neither zero-shot nor one of `fits`: other methods, ranks, variants and prior groups."""
        return [m for m in range(len(self.settings)) if m != self.zero_shot and m not in self.fits]

    @property
    def tuned(self) -> list[int]:
        """Settings for which one of several learning rates, solvers, … was chosen."""
        settings = self.settings
        return [m for m in (*self.fits, *self.others) if len(settings[m].candidate_trials) > settings[m].seeds]

    @property
    def best(self) -> int:
        """The fit that is best on validation; of several alike, that of lower perplexity, then of lower tau."""
        return min(self.fits, key=lambda m: self.settings[m].order)

    @property
    def best_tau(self) -> float:
        return self.settings[self.best].tau

    @property
    def between(self) -> list[int]:
        """Fits at 0 < tau < inf, where tasks differ and share."""
        return [m for m in self.fits if 0 < self.settings[m].tau < math.inf]

    @property
    def best_between(self) -> int | None:
        """The fit at 0 < tau < inf that is best on validation."""
        return min(self.between, key=lambda m: self.settings[m].order, default=None)

    @property
    def independent(self) -> int | None:
        """The fit at tau = 0: one model per task."""
        return next((m for m in self.fits if self.settings[m].tau == 0), None)

    @property
    def shared(self) -> int | None:
        """The fit at tau = inf: one model for all tasks."""
        return next((m for m in self.fits if self.settings[m].tau == math.inf), None)

    @property
    def zero_shot(self) -> int | None:
        return next((m for m, setting in enumerate(self.settings) if setting.method == "zero_shot"), None)


def structure_of(row: dict[Any, Any]) -> Structure:
    """The structure of a row of `trials`."""
    rank, variant, groups, tau_2 = (
        None if pd.isna(row[name]) or row["method"] == "zero_shot" else row[name] for name in Structure._fields
    )
    has_level = tau_2 is not None and tau_2 < math.inf and row["tau"] > 0
    return Structure(None if rank is None else int(rank), variant, groups, tau_2 if has_level else None)
