"""How a fit's training went: perplexity by epoch on the training and the validation split.

E epochs.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd

_SPLITS = ("train", "validation")


@dataclass(frozen=True)
class LearningCurve:
    """Perplexity of one trial after each epoch; NaN where it was not measured."""

    epoch_E: np.ndarray
    """Ascending; 0 is the model before training."""
    train_E: np.ndarray
    """Over the epoch, while the adapters moved."""
    validation_E: np.ndarray

    @property
    def before(self) -> float:
        """Validation before training."""
        return float(self.validation_E[0]) if len(self.epoch_E) and self.epoch_E[0] == 0 else math.nan

    @property
    def overfitting(self) -> "Overfitting | None":
        """Where validation rose while training fell; None where it did not, or where the curve is too short to say."""
        scored = np.flatnonzero(np.isfinite(self.validation_E))
        if len(scored) < 2:
            return None
        lowest, last = scored[self.validation_E[scored].argmin()], scored[-1]
        trained = self.train_E[max(lowest, 1) : last + 1]
        if lowest == last or len(trained) < 2 or not trained[-1] < trained[0]:
            return None
        return Overfitting(
            epoch=int(self.epoch_E[lowest]),
            last_epoch=int(self.epoch_E[last]),
            lowest=float(self.validation_E[lowest]),
            last=float(self.validation_E[last]),
        )


@dataclass(frozen=True)
class Overfitting:
    """Validation perplexity was lowest at an epoch, and rose from there on while that of training fell."""

    epoch: int
    last_epoch: int
    lowest: float
    last: float

    @property
    def rise(self) -> float:
        """As a fraction of the lowest."""
        return self.last / self.lowest - 1


def learning_curves(curves: pd.DataFrame, trials: Collection[tuple[str, str]]) -> dict[tuple[str, str], LearningCurve]:
    """The curves of some trials, by run and trial_id; a trial without one is left out.

    Args:
        curves: The table, with `run`.
        trials: Run and trial_id of each.
    """
    groups = dict(iter(curves.groupby(["run", "trial_id"], sort=False)))
    return {key: _curve(groups[key]) for key in trials if key in groups}


def _curve(rows: pd.DataFrame) -> LearningCurve:
    nats, tokens = rows["nll_nats"].to_numpy(float), rows["num_tokens"].to_numpy(float)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        perplexity = pd.Series(
            np.exp(nats / tokens),
            index=pd.MultiIndex.from_arrays([rows["epoch"], rows["split"]], names=["epoch", "split"]),
        )
    table = perplexity.groupby(level=["epoch", "split"]).last().unstack("split").sort_index()
    table = table.reindex(columns=list(_SPLITS))
    return LearningCurve(table.index.to_numpy(), *(table[split].to_numpy(float) for split in _SPLITS))
