"""Laws of the smooth curve over tau."""

import math

import numpy as np
import pytest

from bora_sweep.report.stats.smooth_curve import SmoothCurve, fit_smooth_curve

DECADES = 10.0 ** np.arange(6)


def replicates(nats_V: np.ndarray, shape: float, level: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    return nats_V + shape * rng.normal(size=(400, len(nats_V))) + level * rng.normal(size=(400, 1))


def of_parabola(shape: float = 1e-3, level: float = 0.0) -> SmoothCurve:
    nats_V = 2 + 0.01 * (np.log10(DECADES) - 2.4) ** 2
    curve = fit_smooth_curve(DECADES, nats_V, replicates(nats_V, shape, level))
    assert curve is not None
    return curve


def test_the_smooth_curve_is_the_one_it_was_drawn_from():
    curve = of_parabola()
    true_G = 2 + 0.01 * (np.log10(curve.tau_G) - 2.4) ** 2
    low_G, high_G = curve.band
    assert np.abs(curve.value_G - true_G).max() < 3e-3
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
    np.testing.assert_array_equal(of_parabola().value_G, of_parabola().value_G)
    nats_V = np.array([3.0, 2.0, 3.0])
    assert fit_smooth_curve(DECADES[:3], nats_V, replicates(nats_V, 0.01)) is None
    assert fit_smooth_curve(DECADES[:4], np.array([3.0, 2.0, math.inf, 2.0]), np.zeros((400, 4))) is None


def test_a_flat_curve_leaves_all_values_as_good():
    curve = fit_smooth_curve(DECADES, np.full(6, 2.0), replicates(np.full(6, 2.0), 1e-3))
    assert curve is not None
    assert (curve.as_good.low, curve.as_good.high) == pytest.approx((1, 1e5))
