"""Spearman's rank correlation, with a p-value and a 95% interval.

- D. G. Bonett, T. A. Wright (2000). Sample size requirements for estimating Pearson, Kendall and Spearman correlations.
  Psychometrika 65, 23-28.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import norm, spearmanr

EXACT_PAIRS = 8
"""Pairs up to which a p-value counts every order."""
FEWEST_FOR_INTERVAL = 10
"""Pairs from which a correlation has an interval."""


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's correlation of n pairs, its 95% interval and its two-sided p-value; NaN where there are too few."""

    rho: float
    n: int
    p: float
    low: float = math.nan
    high: float = math.nan


def spearman(x: np.ndarray, y: np.ndarray) -> RankCorrelation:
    """Spearman's rho of pairs; the interval is by Bonett and Wright (2000).

    The p-value counts every order of up to `EXACT_PAIRS` pairs, and is by Student's t beyond.
    """
    n = len(x)
    if n < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return RankCorrelation(math.nan, n, math.nan)
    result = spearmanr(x, y)
    rho, p = float(result.statistic), float(result.pvalue)  # type: ignore[attr-defined]
    if n <= EXACT_PAIRS:
        ranks_x, ranks_y = pd.Series(x).rank().to_numpy(), pd.Series(y).rank().to_numpy()
        products = np.array(list(itertools.permutations(ranks_y - ranks_y.mean()))) @ (ranks_x - ranks_x.mean())
        p = float(np.mean(np.abs(products) >= abs(products[0]) - 1e-9))  # the first is the order observed
    if n < FEWEST_FOR_INTERVAL:
        return RankCorrelation(rho, n, p)
    half_width = float(norm.ppf(0.975)) * math.sqrt((1 + rho**2 / 2) / (n - 3))
    z = math.atanh(min(max(rho, -1 + 1e-12), 1 - 1e-12))
    return RankCorrelation(rho, n, p, math.tanh(z - half_width), math.tanh(z + half_width))
