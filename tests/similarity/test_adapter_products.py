"""Adapters are compared as the matrices that they add to the weights."""

import numpy as np

from bora_sweep.similarity import adapters
from bora_sweep.similarity.adapters import deviation_cosines, product_gram


def drawn(seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((5, 3, 8)), rng.standard_normal((5, 6, 3)), rng


def test_products_of_ranks_equal_those_of_the_matrices(monkeypatch):
    A_KRI, B_KOR, _ = drawn()
    product_KX = (B_KOR @ A_KRI).reshape(5, -1)
    np.testing.assert_allclose(product_gram(A_KRI, B_KOR), product_KX @ product_KX.T, atol=1e-12)
    monkeypatch.setattr(adapters, "BLOCK_ENTRIES", 100)  # two tasks at a time
    np.testing.assert_allclose(product_gram(A_KRI, B_KOR), product_KX @ product_KX.T, atol=1e-12)


def test_another_basis_of_the_rank_is_the_same_adapter():
    A_KRI, B_KOR, rng = drawn(1)
    turn_KRR = rng.standard_normal((5, 3, 3))
    turned = product_gram(turn_KRR @ A_KRI, B_KOR @ np.linalg.inv(turn_KRR))
    np.testing.assert_allclose(turned, product_gram(A_KRI, B_KOR), atol=1e-9)
    flat = A_KRI.reshape(5, -1)
    assert not np.allclose(flat @ flat.T, (turn_KRR @ A_KRI).reshape(5, -1) @ (turn_KRR @ A_KRI).reshape(5, -1).T)


def test_deviations_are_from_the_last():
    A_KRI, B_KOR, _ = drawn(2)
    A_KRI[1], B_KOR[1] = A_KRI[4], B_KOR[4]  # does not deviate
    product_KX = (B_KOR @ A_KRI).reshape(5, -1)
    away_KX = product_KX[:4] - product_KX[4]
    moved = [0, 2, 3]
    unit = away_KX[moved] / np.linalg.norm(away_KX[moved], axis=1, keepdims=True)
    found = deviation_cosines(product_gram(A_KRI, B_KOR))
    np.testing.assert_allclose(found[np.ix_(moved, moved)], unit @ unit.T, atol=1e-9)
    assert np.isnan(found[1]).all()
