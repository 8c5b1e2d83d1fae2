"""Laws of what is known of tau: its lowest point and posterior, the smooth curve, one standard error."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bora_sweep.report import Contrast, Documents, paired_bootstrap
from bora_sweep.report.stats.smooth_curve import Curve, fit_curve
from bora_sweep.report.stats.tau_choice import best_tau, lowest_tau, one_standard_error, tau_posterior

UNEVEN = np.array([1.0, 5.0, 40.0, 60.0, 1e3, 2e4])


@pytest.mark.parametrize(("middle", "deviation"), [(5.0, 0.3), (6.5, 0.1), (3.0, 0.5)])
def test_the_posterior_of_a_parabola_is_gaussian(middle: float, deviation: float):
    log_taus_V = np.linspace(0, 10, 101)
    interval = tau_posterior(np.exp(log_taus_V), 7_000 + 0.5 * ((log_taus_V - middle) / deviation) ** 2)
    assert math.log(interval.estimate) == pytest.approx(middle, abs=0.01)
    assert math.log(interval.low) == pytest.approx(middle - 1.96 * deviation, abs=0.02 * deviation)
    assert math.log(interval.high) == pytest.approx(middle + 1.96 * deviation, abs=0.02 * deviation)


def test_the_posterior_without_information_is_the_prior():
    interval = tau_posterior(np.array([1.0, 3.0, 1e4]), np.full(3, 123.0))
    log_ends = np.log([interval.low, interval.estimate, interval.high]) / math.log(1e4)
    assert log_ends == pytest.approx([0.025, 0.5, 0.975])


def test_the_posterior_of_a_slope_is_exponential():
    """p ~ exp(-a log tau), far from the upper end: mean 1/a, quantiles -log(1 - q) / a."""
    taus_V = np.exp(np.linspace(0, 20, 9))
    interval = tau_posterior(taus_V, 4 * np.log(taus_V))
    told = np.log([interval.low, interval.estimate, interval.high])
    assert told == pytest.approx([-math.log(0.975) / 4, 1 / 4, -math.log(0.025) / 4], abs=2e-4)


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
        documents = Documents(task_N.astype(object), tokens_N, (x_V - middle_N[:, None]) ** 2)
        bootstrap = paired_bootstrap(documents, 300, seed)
        interval = best_tau(taus_V, bootstrap.nats_per_token_M, bootstrap.nats_per_token_SM)
        assert interval.low <= interval.estimate <= interval.high
        hits += interval.low <= 200 <= interval.high
    assert 0.89 <= hits / draws <= 0.985


def test_an_interval_of_the_best_tau_may_reach_an_end():
    nats_NM = 60 + np.random.default_rng(0).normal(0, 1, (40, 4))
    documents = Documents(np.full(40, "a", dtype=object), np.full(40, 20.0), nats_NM)
    bootstrap = paired_bootstrap(documents)
    taus_V = np.array([0, 1.0, 10.0, math.inf])
    interval = best_tau(taus_V, bootstrap.nats_per_token_M, bootstrap.nats_per_token_SM)
    assert (interval.low, interval.high) == (0, math.inf)


def above(nats: float, error: float) -> Contrast:
    return Contrast(np.asarray(nats), np.asarray(error), np.asarray(30.0))


def test_one_standard_error_takes_the_largest_tau_within_the_error_of_its_own_difference():
    contrasts = {0: above(0.5, 0.6), 1: above(0, 0), 2: above(0.09, 0.1), 3: above(0.2, 0.1), 4: above(0.3, 0.29)}
    assert one_standard_error([0, 1, 2, 3, 4], contrasts) == 2
    contrasts[4] = above(0.29, 0.3)
    assert one_standard_error([0, 1, 2, 3, 4], contrasts) == 4
    assert one_standard_error([0, 1], {0: above(0.1, 0.2), 1: above(0, 0)}) == 1  # never a smaller tau than the lowest


def replicates(nats_V: np.ndarray, shape: float, level: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    return nats_V + shape * rng.normal(size=(400, len(nats_V))) + level * rng.normal(size=(400, 1))


def of_parabola(shape: float = 1e-3, level: float = 0.0) -> Curve:
    nats_V = 2 + 0.01 * (np.log10(DECADES) - 2.4) ** 2
    curve = fit_curve(DECADES, nats_V, replicates(nats_V, shape, level))
    assert curve is not None
    return curve


DECADES = 10.0 ** np.arange(6)


def test_the_smooth_curve_is_the_one_it_was_drawn_from():
    curve = of_parabola()
    true_G = 2 + 0.01 * (np.log10(curve.tau_G) - 2.4) ** 2
    low_G, high_G = curve.band
    assert np.abs(curve.nats_per_token_G - true_G).max() < 3e-3
    assert ((low_G <= true_G) & (true_G <= high_G)).mean() > 0.9
    assert curve.tau_G[curve.lowest] == pytest.approx(10**2.4, rel=0.3)
    assert curve.as_good.low < 10**2.4 < curve.as_good.high


def test_how_high_the_curve_lies_does_not_widen_it():
    apart, together = of_parabola(1e-3, level=0.0), of_parabola(1e-3, level=1.0)
    np.testing.assert_allclose(apart.band, together.band, rtol=1e-3)


def test_more_noise_makes_more_values_as_good():
    sure, unsure = of_parabola(1e-4).as_good, of_parabola(3e-3).as_good
    assert unsure.high / unsure.low > 2 * sure.high / sure.low


def test_the_smooth_curve_is_the_same_each_time_and_needs_four_fits():
    np.testing.assert_array_equal(of_parabola().nats_per_token_G, of_parabola().nats_per_token_G)
    nats_V = np.array([3.0, 2.0, 3.0])
    assert fit_curve(DECADES[:3], nats_V, replicates(nats_V, 0.01)) is None
    assert fit_curve(DECADES[:4], np.array([3.0, 2.0, math.inf, 2.0]), np.zeros((400, 4))) is None


def test_a_flat_curve_leaves_all_values_as_good():
    curve = fit_curve(DECADES, np.full(6, 2.0), replicates(np.full(6, 2.0), 1e-3))
    assert curve is not None
    assert (curve.as_good.low, curve.as_good.high) == pytest.approx((1, 1e5))
