"""Laws of the choice of tau: the lowest point with its interval, and the one-standard-error rule."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bora_sweep.report import Contrast, DocumentScores, paired_bootstrap
from bora_sweep.report.stats.tau_choice import best_tau_interval, lowest_tau, one_standard_error

UNEVEN = np.array([1.0, 5.0, 40.0, 60.0, 1e3, 2e4])


@given(st.floats(math.log(5.0), math.log(1e3)), st.floats(0.1, 1e4), st.floats(-1e3, 1e6))
@settings(max_examples=50, deadline=None)
def test_the_lowest_point_of_a_parabola_is_its_vertex(middle: float, scale: float, height: float):
    nll_V = height + scale * (np.log(UNEVEN) - middle) ** 2
    assert math.log(lowest_tau(UNEVEN, nll_V[None])[0]) == pytest.approx(middle, abs=1e-3)


@given(st.lists(st.floats(0, 1e3), min_size=6, max_size=6))
@settings(max_examples=50, deadline=None)
def test_the_lowest_point_lies_between_the_neighbours_of_the_lowest_fit(nll_V: list[float]):
    v = int(np.argmin(nll_V))
    (tau,) = lowest_tau(UNEVEN, np.array([nll_V]))
    assert UNEVEN[max(v - 1, 0)] <= tau <= UNEVEN[min(v + 1, 5)]


@pytest.mark.parametrize(("v", "tau"), [(0, 0.0), (1, 10.0), (3, 1e3), (4, math.inf)])
def test_beside_the_ends_the_lowest_point_is_the_fit_itself(v: int, tau: float):
    nll_V = np.abs(np.arange(5.0) - v)
    assert lowest_tau(np.array([0, 10, 100, 1e3, math.inf]), nll_V[None])[0] == tau


def test_95_of_100_intervals_hold_the_best_tau():
    """Each document has a parabola of its own, as (log tau - its middle)^2: their sum is lowest at the mean middle."""
    rng = np.random.default_rng(2)
    taus_V, tokens_N, task_N = (
        np.array([0, 1, 30, 200, 1e3, 1e5, math.inf]),
        np.full(80, 20.0),
        np.repeat(["a", "b"], 40),
    )
    x_V = np.clip(np.log(np.maximum(taus_V, 1e-9)), -9, 20)
    hits, draws = 0, 200
    for seed in range(draws):
        middle_N = rng.normal(math.log(200), 4, 80)
        documents = DocumentScores(task_N.astype(object), tokens_N, (x_V - middle_N[:, None]) ** 2)
        bootstrap = paired_bootstrap(documents, 300, seed)
        interval = best_tau_interval(taus_V, bootstrap.mean_M, bootstrap.mean_SM)
        assert interval.low <= interval.estimate <= interval.high
        hits += interval.low <= 200 <= interval.high
    assert 0.89 <= hits / draws <= 0.985


def test_an_interval_of_the_best_tau_may_reach_an_end():
    nats_NM = 60 + np.random.default_rng(0).normal(0, 1, (40, 4))
    documents = DocumentScores(np.full(40, "a", dtype=object), np.full(40, 20.0), nats_NM)
    bootstrap = paired_bootstrap(documents)
    taus_V = np.array([0, 1.0, 10.0, math.inf])
    interval = best_tau_interval(taus_V, bootstrap.mean_M, bootstrap.mean_SM)
    assert (interval.low, interval.high) == (0, math.inf)


def above(nats: float, error: float) -> Contrast:
    return Contrast(np.asarray(nats), np.asarray(error), np.asarray(30.0))


def test_one_standard_error_takes_the_largest_tau_within_the_error_of_its_own_difference():
    contrasts = {0: above(0.5, 0.6), 1: above(0, 0), 2: above(0.09, 0.1), 3: above(0.2, 0.1), 4: above(0.3, 0.29)}
    assert one_standard_error([0, 1, 2, 3, 4], contrasts) == 2
    contrasts[4] = above(0.29, 0.3)
    assert one_standard_error([0, 1, 2, 3, 4], contrasts) == 4
    assert one_standard_error([0, 1], {0: above(0.1, 0.2), 1: above(0, 0)}) == 1  # never a smaller tau than the lowest
