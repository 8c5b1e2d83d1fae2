"""Estimates with standard errors, and their 95% intervals by Student's t."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats

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
    """Nats per token of settings, or differences of two settings, with standard errors. All arrays have one shape."""

    nats_per_token: np.ndarray
    standard_error: np.ndarray
    """NaN where there are too few documents to estimate it."""
    degrees_of_freedom: np.ndarray

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bound of the 95% interval, in nats per token."""
        half_width = t_quantile(self.degrees_of_freedom) * self.standard_error
        return self.nats_per_token - half_width, self.nats_per_token + half_width

    @cached_property
    def perplexity_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """exp of `bounds`; inf where it overflows."""
        with np.errstate(over="ignore"):
            low, high = (np.exp(bound) for bound in self.bounds)
        return low, high

    @cached_property
    def p_value(self) -> np.ndarray:
        """Two-sided p-value of no difference, by the t test; 1 where there are too few documents."""
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.abs(self.nats_per_token) / self.standard_error
        p = 2 * stats.t.sf(t, self.degrees_of_freedom)
        return np.where(np.isnan(p), 1.0, p)

    def perplexity(self, *index: int) -> Interval:
        """exp of one entry. Swapping a setting with its reference inverts the estimate and both bounds exactly."""
        with np.errstate(over="ignore"):
            low, high = (float(np.exp(bound[index])) for bound in self.bounds)
            return Interval(float(np.exp(self.nats_per_token[index])), low, high)

    def relative(self, *index: int) -> Interval:
        """`perplexity(setting) / perplexity(reference) - 1` of one entry."""
        ratio = self.perplexity(*index)
        return Interval(ratio.estimate - 1, ratio.low - 1, ratio.high - 1)


def t_quantile(degrees_of_freedom: np.ndarray | float) -> np.ndarray:
    """How many standard errors a 95% interval extends to each side, by Student's t."""
    return stats.t.ppf((1 + LEVEL) / 2, degrees_of_freedom)
