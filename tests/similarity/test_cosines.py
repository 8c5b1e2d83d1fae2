"""Similarities by noisy gradients: the noise is off, and intervals hold."""

import numpy as np
import pytest

from bora_sweep.similarity import cosines as module
from bora_sweep.similarity.cosines import cosines, squared_norm


def own(score_KFP):
    return score_KFP @ score_KFP.transpose(0, 2, 1)


def draw(signal_KP, tokens_KF, noise, rng):
    """Sums of scores whose mean per token is the signal, with noise of a variance per token."""
    shape = *tokens_KF.shape, signal_KP.shape[1]
    noise_KFP = noise * np.sqrt(tokens_KF)[:, :, None] * rng.standard_normal(shape)
    return tokens_KF[:, :, None] * signal_KP[:, None] + noise_KFP


def test_without_noise_the_cosines_are_those_of_the_signals_less_their_weighted_mean():
    rng = np.random.default_rng(0)
    signal_KP, tokens_KF = rng.standard_normal((5, 7)), rng.integers(1, 30, (5, 4))
    found = cosines(draw(signal_KP, tokens_KF, 0.0, rng), tokens_KF)
    weight_K = tokens_KF.sum(1) / tokens_KF.sum()
    centered_KP = signal_KP - weight_K @ signal_KP
    unit_KP = centered_KP / np.linalg.norm(centered_KP, axis=1, keepdims=True)
    np.testing.assert_allclose(found.cosine_KK, unit_KP @ unit_KP.T, atol=1e-10)
    np.testing.assert_allclose(found.error_KK, 0, atol=1e-6)
    np.testing.assert_allclose(found.signal_K, (centered_KP**2).sum(1), rtol=1e-10)
    np.testing.assert_allclose(found.noise_K, 0, atol=1e-10)
    np.testing.assert_allclose(found.weight_K, weight_K)


def test_the_squared_norm_is_unbiased_and_without_the_correction_it_is_not():
    rng = np.random.default_rng(1)
    signal_KP, tokens_KF = rng.standard_normal((3, 20)), np.array([[3, 9, 5], [2, 0, 4], [6, 6, 6]])
    drawn = [draw(signal_KP, tokens_KF, 3.0, rng) for _ in range(3000)]
    estimates = np.array([squared_norm(own(score_KFP), tokens_KF) for score_KFP in drawn])
    naive = np.array([((score_KFP.sum(1) / tokens_KF.sum(1)[:, None]) ** 2).sum(1) for score_KFP in drawn])
    true_K = (signal_KP**2).sum(1)
    assert (np.abs(estimates.mean(0) - true_K) < 4 * estimates.std(0) / np.sqrt(len(drawn))).all()
    np.testing.assert_allclose(naive.mean(0) - true_K, 9 * 20 / tokens_KF.sum(1), rtol=0.1)


@pytest.mark.filterwarnings("ignore:invalid value")  # cosines of negative squared norms, which are not looked at
def test_inner_products_beside_the_common_part_are_unbiased_with_few_tasks_too(monkeypatch):
    monkeypatch.setattr(module, "LEAST_SHARE", -np.inf)
    rng = np.random.default_rng(2)
    signal_KP, tokens_KF = rng.standard_normal((3, 12)), np.array([[4, 4], [8, 2], [1, 5]])
    weight_K = tokens_KF.sum(1) / tokens_KF.sum()
    centered_KP = signal_KP - weight_K @ signal_KP
    grams = []
    for _ in range(4000):
        found = cosines(draw(signal_KP, tokens_KF, 1.0, rng), tokens_KF)
        grams.append(found.signal_K)
    grams = np.array(grams)
    true_K = (centered_KP**2).sum(1)
    assert (np.abs(grams.mean(0) - true_K) < 4 * grams.std(0) / np.sqrt(len(grams))).all()


def test_two_halves_of_one_task_are_alike_where_plain_cosines_drown():
    rng = np.random.default_rng(3)
    signal_KP = rng.standard_normal((8, 400)) / 20
    signal_KP[1] = signal_KP[0]  # the halves
    tokens_KF = np.full((8, 8), 50)
    halves, plain = [], []
    for _ in range(40):
        score_KFP = draw(signal_KP, tokens_KF, 1.0, rng)
        found = cosines(score_KFP, tokens_KF)
        halves.append(found.cosine_KK[0, 1])
        g_KP = score_KFP.sum(1) - score_KFP.sum(1).mean(0)
        plain.append(g_KP[0] @ g_KP[1] / np.linalg.norm(g_KP[0]) / np.linalg.norm(g_KP[1]))
    assert np.mean(plain) < 0.6
    assert np.mean(halves) > 0.9


def test_intervals_hold_the_true_similarity():
    rng = np.random.default_rng(4)
    signal_KP = rng.standard_normal((6, 300)) / 15
    signal_KP[3:] += signal_KP[0]
    tokens_KF = np.full((6, 8), 40)
    centered_KP = signal_KP - signal_KP.mean(0)
    unit_KP = centered_KP / np.linalg.norm(centered_KP, axis=1, keepdims=True)
    true_KK, pairs = unit_KP @ unit_KP.T, np.triu_indices(6, 1)
    inside = []
    for _ in range(150):
        found = cosines(draw(signal_KP, tokens_KF, 1.0, rng), tokens_KF)
        inside.append(((found.low_KK <= true_KK) & (true_KK <= found.high_KK))[pairs])
    assert 0.9 <= np.mean(inside) <= 0.99


def test_tasks_in_another_order_have_the_same_similarities(monkeypatch):
    rng = np.random.default_rng(5)
    tokens_KF = rng.integers(1, 9, (9, 3))
    score_KFP = draw(rng.standard_normal((9, 15)), tokens_KF, 1.0, rng)
    order = rng.permutation(9)
    one = cosines(score_KFP, tokens_KF)
    monkeypatch.setattr(module, "BLOCK", 2)
    other = cosines(score_KFP[order], tokens_KF[order])
    np.testing.assert_allclose(other.cosine_KK, one.cosine_KK[np.ix_(order, order)], atol=1e-12)
    np.testing.assert_allclose(other.error_KK, one.error_KK[np.ix_(order, order)], atol=1e-12)


def test_a_task_of_one_document_has_a_similarity_but_no_interval():
    rng = np.random.default_rng(6)
    tokens_KF = np.full((4, 3), 5)
    tokens_KF[2, 1:] = 0
    found = cosines(draw(rng.standard_normal((4, 6)), tokens_KF, 0.1, rng), tokens_KF)
    assert np.isfinite(found.cosine_KK).all()
    is_other = np.arange(4) != 2
    assert np.isnan(found.low_KK[2, is_other]).all()
    assert np.isfinite(found.low_KK[np.ix_(is_other, is_other)]).all()
    assert found.signal_K[2] == pytest.approx(found.signal_K[is_other].mean(), rel=0.5)
