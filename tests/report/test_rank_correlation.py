"""Laws of the rank correlation."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from bora_sweep.report.stats.rank_correlation import spearman


@pytest.mark.parametrize(("n", "p"), [(3, 2 / 6), (6, 2 / 720)])
def test_p_of_a_perfect_rank_counts_every_order(n: int, p: float):
    x = np.arange(n) ** 2.0
    for y, rho in ((x, 1), (-x, -1)):
        rank = spearman(x, y)
        assert rank.rho == pytest.approx(rho)
        assert rank.p == pytest.approx(p)
        assert math.isnan(rank.low)


def test_p_of_ties_is_the_share_of_orders_at_least_as_far_from_0():
    x, y = np.array([1.0, 2, 2, 3, 5]), np.array([2.0, 1, 4, 4, 9])
    observed = abs(spearmanr(x, y)[0])
    shares = [abs(spearmanr(x, np.array(order))[0]) >= observed - 1e-9 for order in itertools.permutations(y)]
    assert spearman(x, y).p == pytest.approx(np.mean(shares))


def test_the_interval_covers_the_correlation_that_made_the_data():
    """Of 300 normal samples of 25 with a known rank correlation, 95% within the noise of so many."""
    rng = np.random.default_rng(0)
    pearson = 0.6
    truth = 6 / math.pi * math.asin(pearson / 2)
    covered = 0
    for _ in range(300):
        x, e = rng.standard_normal((2, 25))
        rank = spearman(x, pearson * x + math.sqrt(1 - pearson**2) * e)
        covered += rank.low <= truth <= rank.high
    assert 0.92 <= covered / 300 <= 0.98


def test_too_few_or_constant_numbers_have_no_rank():
    assert math.isnan(spearman(np.array([1.0, 2]), np.array([1.0, 2])).rho)
    assert math.isnan(spearman(np.ones(5), np.arange(5.0)).rho)
