"""Groups are found where they are, and not proposed where tasks only differ."""

import numpy as np
import pytest

from bora_sweep.similarity.clusters import FEWEST_TASKS, LEVEL, find_clusters, leaf_order, silhouettes


def cosines_of(points_KP):
    unit_KP = points_KP / np.linalg.norm(points_KP, axis=1, keepdims=True)
    return unit_KP @ unit_KP.T


def blocks(sizes, within=0.6, between=-0.1):
    label_K = np.repeat(np.arange(len(sizes)), sizes)
    cosine_KK = np.where(label_K[:, None] == label_K, within, between)
    np.fill_diagonal(cosine_KK, 1)
    return cosine_KK, label_K


def find(cosine_KK, error=0.02, seed=0):
    K = len(cosine_KK)
    return find_clusters(cosine_KK, np.full((K, K), error), np.full(K, 1 / K), seed)


@pytest.mark.parametrize("sizes", [(6, 6, 6, 6), (10, 7, 4, 3), (12, 9)])
def test_blocks_are_found(sizes):
    cosine_KK, label_K = blocks(sizes)
    found = find(cosine_KK)
    assert found.p_value <= LEVEL
    np.testing.assert_array_equal(found.label_K, label_K)  # the largest is the first
    assert (found.silhouette_K > 0.4).all()


def test_the_order_of_tasks_does_not_matter():
    rng = np.random.default_rng(0)
    cosine_KK, label_K = blocks((8, 6, 4))
    order = rng.permutation(len(label_K))
    found = find(cosine_KK[np.ix_(order, order)])
    np.testing.assert_array_equal(found.label_K, label_K[order])
    assert found.p_value == find(cosine_KK).p_value


def test_below_the_tree_the_tasks_of_a_group_are_neighbours():
    rng = np.random.default_rng(1)
    cosine_KK, label_K = blocks((5, 4, 3))
    order = rng.permutation(len(label_K))
    leaves = leaf_order(cosine_KK[np.ix_(order, order)])
    assert sorted(leaves) == list(range(12))
    assert (np.diff(label_K[order][leaves]) != 0).sum() == 2


@pytest.mark.slow
def test_tasks_without_groups_are_no_structure():
    rng, proposed = np.random.default_rng(2), 0
    for draw in range(20):
        spectrum_P = np.linspace(1, 0.1, 30) if draw % 2 else np.geomspace(1, 0.001, 30)
        points_KP = rng.standard_normal((24, 30)) * np.sqrt(spectrum_P)
        proposed += find(cosines_of(points_KP - points_KP.mean(0)), seed=draw).label_K is not None
    assert proposed <= 1


def test_noise_alone_is_no_structure():
    rng = np.random.default_rng(3)
    noise_KK = np.triu(rng.standard_normal((20, 20)), 1)
    cosine_KK = np.clip(np.eye(20) + noise_KK + noise_KK.T, -1, 1)
    assert find(cosine_KK, error=1.0).label_K is None


def test_few_tasks_are_too_few():
    cosine_KK, _ = blocks((FEWEST_TASKS - 3, 2), within=0.99)
    found = find(cosine_KK)
    assert found.label_K is None
    assert found.p_value == 1
    assert sorted(found.order_K) == list(range(FEWEST_TASKS - 1))


def test_of_many_tasks_those_with_little_text_join_the_group_that_they_are_most_like(monkeypatch):
    monkeypatch.setattr("bora_sweep.similarity.clusters.MOST_TASKS", 18)
    cosine_KK, label_K = blocks((12, 9, 9))
    weight_K = np.where(np.arange(30) % 3 == 0, 0.1, 1.0)
    weight_K[:18:3] = 0.2
    found = find_clusters(cosine_KK, np.full((30, 30), 0.02), weight_K / weight_K.sum())
    np.testing.assert_array_equal(found.label_K, label_K)


def test_silhouettes_by_hand():
    cosine_KK = np.array([[1, 0.8, 0.0], [0.8, 1, 0.2], [0.0, 0.2, 1]])
    np.testing.assert_allclose(silhouettes(cosine_KK, np.array([0, 0, 1])), [0.8, 0.75, 0])
