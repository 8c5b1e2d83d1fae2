"""Whitening by Kronecker factors."""

import numpy as np

from bora_sweep.similarity import whitening
from bora_sweep.similarity.whitening import Moments


def test_gradients_with_a_kronecker_covariance_become_white(monkeypatch):
    monkeypatch.setattr(whitening, "FLOOR", 0.0)
    rng = np.random.default_rng(0)
    left_MM, right_NN = rng.standard_normal((3, 3)), rng.standard_normal((4, 4))
    gradient_BMN = left_MM @ rng.standard_normal((40_000, 3, 4)) @ right_NN
    moments = Moments(3, 4)
    for part in np.array_split(gradient_BMN, 7):
        moments.add(part)
    white = moments.whiten(gradient_BMN).reshape(-1, 12)
    covariance = white.T @ white / len(white)
    np.testing.assert_allclose(covariance / np.diagonal(covariance).mean(), np.eye(12), atol=0.05)


def test_directions_without_gradients_stay_zero():
    moments = Moments(2, 3)
    gradient_BMN = np.zeros((5, 2, 3))
    moments.add(gradient_BMN)
    np.testing.assert_array_equal(moments.whiten(gradient_BMN), 0)


def test_a_coordinate_that_is_loud_everywhere_does_not_decide():
    rng = np.random.default_rng(1)
    gradient_BMN = rng.standard_normal((2000, 2, 3))
    loud_BMN = gradient_BMN * np.array([1.0, 100.0, 1.0])
    one, other = Moments(2, 3), Moments(2, 3)
    one.add(gradient_BMN)
    other.add(loud_BMN)
    plain, turned = one.whiten(gradient_BMN), other.whiten(loud_BMN)
    shares = [(white**2).sum((0, 1)) / (white**2).sum() for white in (plain, turned)]
    np.testing.assert_allclose(shares[0], 1 / 3, atol=0.02)
    assert shares[1][1] < 0.99
