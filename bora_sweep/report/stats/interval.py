"""Estimates with standard errors, and their 95% intervals by Student's t."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats

from bora_sweep.report.stats.measure import NATS, Measure

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its 95% interval."""

    estimate: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def __neg__(self) -> "Interval":
        return Interval(-self.estimate, -self.high, -self.low)


@dataclass(frozen=True)
class Contrast:
    """Mean values of settings, or differences of two settings, with standard errors. All arrays have one shape.

    Lower is better: nats per token, or minus the mean score of a metric. `level` and `difference` are as they are read.
    """

    estimate: np.ndarray
    standard_error: np.ndarray
    """NaN where there are too few documents to estimate it."""
    degrees_of_freedom: np.ndarray
    measure: Measure = NATS
    documents_agree: np.ndarray | bool = False
    """All documents of a task score alike by a metric. Then their spread is not known and is not 0: with a few more
    documents one would differ. There is no interval."""

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bound of the 95% interval; NaN where it is not known."""
        half_width = np.where(self.documents_agree, np.nan, t_quantile(self.degrees_of_freedom) * self.standard_error)
        return self.estimate - half_width, self.estimate + half_width

    @cached_property
    def p_value(self) -> np.ndarray:
        """Two-sided p-value of no difference, by the t test; 1 where there are too few documents."""
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.abs(self.estimate) / self.standard_error
        p = 2 * stats.t.sf(t, self.degrees_of_freedom)
        return np.where(np.isnan(p), 1.0, p)

    def level(self, *index: int) -> Interval:
        """One entry as perplexity, or as the mean score."""
        return self._interval(self.measure.level, index)

    def difference(self, *index: int) -> Interval:
        """One entry as `perplexity(setting) / perplexity(reference) - 1`, or as the difference of two mean scores.

        Swapping setting and reference inverts the ratio of two perplexities, or negates the difference of two scores,
        and both bounds, exactly.
        """
        return self._interval(self.measure.difference, index)

    def levels(self, column: int) -> list[Interval]:
        """`level` of each entry of a column."""
        return self._intervals(self.measure.level, column)

    def gains(self, column: int) -> list[Interval]:
        """How much better the setting of a column is than its reference, of each entry: above 0 where it is better."""
        differences = self._intervals(self.measure.difference, column)
        return differences if self.measure.is_metric else [-difference for difference in differences]

    def gain(self) -> Interval:
        """The same of a single contrast."""
        return self.difference() if self.measure.is_metric else -self.difference()

    def _interval(self, shown: Callable[[np.ndarray], np.ndarray], index: tuple[int, ...]) -> Interval:
        estimate, *ends = (float(shown(values[index])) for values in (self.estimate, *self.bounds))
        return Interval(estimate, *(reversed(ends) if self.measure.is_metric else ends))

    def _intervals(self, shown: Callable[[np.ndarray], np.ndarray], column: int) -> list[Interval]:
        estimate, *ends = (shown(values[:, column]).tolist() for values in (self.estimate, *self.bounds))
        return list(map(Interval, estimate, *(reversed(ends) if self.measure.is_metric else ends)))

    def level_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds of `level`, of all entries."""
        return self.measure.level_bounds(*self.bounds)


def t_quantile(degrees_of_freedom: np.ndarray | float) -> np.ndarray:
    """How many standard errors a 95% interval extends to each side, by Student's t."""
    return stats.t.ppf((1 + LEVEL) / 2, degrees_of_freedom)
