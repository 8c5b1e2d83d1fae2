"""What is measured of a document: perplexity, or a metric of the text that a model generates.

Within the statistics every measure is a ratio of sums that is better where it is lower. A document has a value and a
weight: its nats and its tokens, or minus its score and 1. Means of these become levels and differences here.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from bora_sweep.config import PERPLEXITY

Unit = Literal["perplexity", "share", "number"]


@dataclass(frozen=True)
class Measure:
    """How a mean of values is shown, and which way is better."""

    name: str
    """`perplexity`, or the column `metric` of `predictions`."""
    label: str
    """In words; a function of the user's has its own name."""
    unit: Unit
    """`share`: scores from 0 to 1, shown as percentages. `number`: any finite scores."""

    @property
    def title(self) -> str:
        """The label at the beginning of a line; the name of a function stays as it is."""
        return self.label[:1].upper() + self.label[1:] if self.name in MEASURES else self.label

    @property
    def is_metric(self) -> bool:
        """Higher is better, and documents count alike."""
        return self.unit != "perplexity"

    @property
    def higher_or_lower(self) -> str:
        """Which is better."""
        return "higher" if self.is_metric else "lower"

    @property
    def best_word(self) -> str:
        """`lowest` or `highest`."""
        return "highest" if self.is_metric else "lowest"

    @property
    def better_side(self) -> str:
        """On which side of another level a better one lies."""
        return "above" if self.is_metric else "below"

    @property
    def worse_side(self) -> str:
        """On which side of another level a worse one lies."""
        return "below" if self.is_metric else "above"

    @property
    def difference_name(self) -> str:
        """In the names of columns."""
        return "difference" if self.is_metric else "relative_difference"

    @property
    def limits(self) -> tuple[float, float]:
        """Between which every mean score lies."""
        return (0.0, 1.0) if self.unit == "share" else (-np.inf, np.inf)

    def level(self, mean: np.ndarray) -> np.ndarray:
        """exp of nats per token, inf where it overflows; of a metric the mean score.

        The bounds of a share's interval may lie beyond 0 and 1, where no mean is: they are cut.
        """
        if not self.is_metric:
            with np.errstate(over="ignore"):
                return np.exp(mean)
        return np.clip(0.0 - mean, *self.limits)

    def level_bounds(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bounds of the level, from those of the mean."""
        return (self.level(high), self.level(low)) if self.is_metric else (self.level(low), self.level(high))

    def level_error(self, mean: np.ndarray, error: np.ndarray) -> np.ndarray:
        """Standard error of a level, from that of its mean (delta method)."""
        return error if self.is_metric else self.level(mean) * error

    def difference(self, difference: np.ndarray) -> np.ndarray:
        """From a difference of two means: the change of perplexity as a fraction, or the difference of two scores."""
        if not self.is_metric:
            return self.level(difference) - 1
        return np.clip(0.0 - difference, -1, 1) if self.unit == "share" else 0.0 - difference

    def rank(self, level: np.ndarray) -> np.ndarray:
        """The level, or minus the mean score: lower is better, and infinite where it is not known."""
        return np.where(np.isnan(level), np.inf, -level if self.is_metric else level)

    def change(self, level: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """What `difference` is, from the two levels."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return level - reference if self.is_metric else level / reference - 1


MEASURES = {
    measure.name: measure
    for measure in (
        Measure(PERPLEXITY, "perplexity", "perplexity"),
        Measure("accuracy", "accuracy", "share"),
        Measure("exact_match", "exact match", "share"),
        Measure("rouge_l", "ROUGE-L", "share"),
    )
}
NATS = MEASURES[PERPLEXITY]


def measure_of(name: str) -> Measure:
    """The measure of this name; one that is not built in is a function of the user's."""
    return MEASURES.get(name) or Measure(name, name, "number")
