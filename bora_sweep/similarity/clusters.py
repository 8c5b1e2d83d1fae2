"""Whether tasks fall into groups, and into which; an honest no where they only differ.

Tasks without groups have chance similarities too, and any of them can be cut into clusters. So the clusters are held
against tasks that have none: points of one Gaussian with the observed spectrum, as in SigClust (Liu, Hayes, Nobel &
Marron 2008), seen with the observed noise, and compared for each number of clusters as in the gap statistic
(Tibshirani, Walther & Hastie 2001). The observed spectrum has noise in it already, and that of few tasks is more uneven
than their source's, so that the test says no too often rather than too seldom.

Shapes: K tasks, C numbers of clusters that are tried, G clusters, S simulated sets of tasks.
"""

from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

LEVEL = 0.02
"""Groups are proposed where so small a share of sets of tasks without groups looks as grouped."""
SIMULATIONS = 199
"""S."""
FEWEST_TASKS = 6
"""With fewer tasks no group is proposed."""
MOST_CLUSTERS = 20
MOST_TASKS = 200
"""Tasks that groups are found among. Of more, those with most text; the others join the group they are most like."""
ROUNDS = 10
"""In which tasks move to the cluster that they are most like, once the tree is cut."""
MOST_ORDERED = 500
"""Tasks whose leaves are turned so that neighbours are alike."""


@dataclass(frozen=True)
class Clusters:
    """Groups of K tasks, or none."""

    label_K: np.ndarray | None
    """The group of each task, counted from 0, the largest first, equal ones in the tasks' order; None: no structure."""
    p_value: float
    """The share of sets of tasks without groups that look as grouped."""
    silhouette_K: np.ndarray
    """How much liker each task is to its own cluster than to the next, from -1 to 1, of the best cut of the tree."""
    order_K: np.ndarray
    """The tasks from left to right below the tree."""


def tree(cosine_KK: np.ndarray) -> np.ndarray:
    """The tree of average linkage by the distance 1 - cosine, as `scipy.cluster.hierarchy.linkage` has it."""
    return linkage(squareform(_distances(cosine_KK), checks=False), "average")


def leaf_order(cosine_KK: np.ndarray) -> np.ndarray:
    """The tasks from left to right below the tree."""
    links = tree(cosine_KK)
    if len(cosine_KK) <= MOST_ORDERED:
        links = optimal_leaf_ordering(links, squareform(_distances(cosine_KK), checks=False))
    return leaves_list(links)


def find_clusters(cosine_KK: np.ndarray, error_KK: np.ndarray, weight_K: np.ndarray, seed: int = 0) -> Clusters:
    """Groups of tasks, or none.

    Args:
        cosine_KK: How alike tasks are, from -1 to 1.
        error_KK: Standard errors; NaN: nothing is known.
        weight_K: Each task's share of the text.
        seed: Of the simulated tasks.
    """
    K = len(cosine_KK)
    if K < FEWEST_TASKS:
        return Clusters(None, 1.0, np.zeros(K), np.arange(K) if K < 3 else leaf_order(cosine_KK))
    among = np.sort(np.argsort(-weight_K, kind="stable")[:MOST_TASKS])
    inner_KK = cosine_KK[np.ix_(among, among)]
    noise_KK = np.minimum(np.nan_to_num(error_KK[np.ix_(among, among)], nan=1.0), 1.0)
    weight_A = weight_K[among] / weight_K[among].sum()
    cut, p_value = _best_cut(inner_KK, noise_KK, weight_A, np.random.default_rng(seed))
    label_K = _joined(cosine_KK, among, cut)
    _, first_G, size_G = np.unique(label_K, return_index=True, return_counts=True)
    label_K = np.argsort(np.lexsort((first_G, -size_G)))[label_K]
    silhouette_K = silhouettes(cosine_KK, label_K)
    return Clusters(label_K if p_value <= LEVEL else None, p_value, silhouette_K, leaf_order(cosine_KK))


def silhouettes(cosine_KK: np.ndarray, label_K: np.ndarray) -> np.ndarray:
    """(b - a) / max(a, b) of each task (Rousseeuw 1987), with a the mean distance to others of its cluster, and b that
    to the nearest other cluster. 0 for a task that is alone, and where there is one cluster.
    """
    if label_K.max() == 0:
        return np.zeros(len(label_K))
    distance_KK, places = _distances(cosine_KK), np.arange(len(label_K))
    size_G = np.bincount(label_K)
    sum_KG = distance_KK @ np.eye(len(size_G))[label_K]
    own_K = sum_KG[places, label_K] / np.maximum(size_G[label_K] - 1, 1)
    mean_KG = sum_KG / size_G
    mean_KG[places, label_K] = np.inf
    next_K = mean_KG.min(1)
    larger_K = np.maximum(np.maximum(own_K, next_K), np.finfo(float).tiny)
    return np.where(size_G[label_K] > 1, (next_K - own_K) / larger_K, 0.0)


def _distances(cosine_KK: np.ndarray) -> np.ndarray:
    distance_KK = np.clip(1 - (cosine_KK + cosine_KK.T) / 2, 0, 2)
    np.fill_diagonal(distance_KK, 0)
    return distance_KK


def _best_cut(
    cosine_KK: np.ndarray, error_KK: np.ndarray, weight_K: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """The cut whose silhouette is furthest above that of tasks without groups, and the p-value of that."""
    cuts = _cuts(cosine_KK)
    found_C = np.array([silhouettes(cosine_KK, label_K).mean() for label_K in cuts])
    null_SC = np.array([
        [silhouettes(simulated_KK, label_K).mean() for label_K in _cuts(simulated_KK)]
        for simulated_KK in (tasks_without_groups(cosine_KK, error_KK, weight_K, rng) for _ in range(SIMULATIONS))
    ])  # fmt: skip
    mean_C, scatter_C = null_SC.mean(0), np.maximum(null_SC.std(0), np.finfo(float).eps)
    above_C, null_above_S = (found_C - mean_C) / scatter_C, ((null_SC - mean_C) / scatter_C).max(1)
    best = int(above_C.argmax())
    return cuts[best], float((1 + (null_above_S >= above_C[best]).sum()) / (1 + SIMULATIONS))


def _cuts(cosine_KK: np.ndarray) -> list[np.ndarray]:
    """2 and more clusters, of three tasks on average at least: the tree cut, then each task where it is most alike."""
    links, most = tree(cosine_KK), min(MOST_CLUSTERS, max(3, len(cosine_KK) // 3))
    cuts = (_compact(fcluster(links, count, "maxclust")) for count in range(2, most + 1))
    return [_settled(cosine_KK, label_K) for label_K in cuts]


def _settled(cosine_KK: np.ndarray, label_K: np.ndarray) -> np.ndarray:
    """The clusters once each task is in the one whose other tasks it is most like on average."""
    places = np.arange(len(label_K))
    others_KK = cosine_KK - np.diag(np.diagonal(cosine_KK))
    for _ in range(ROUNDS):
        size_G = np.bincount(label_K)
        count_KG = np.tile(size_G, (len(label_K), 1))
        count_KG[places, label_K] -= 1
        likeness_KG = others_KK @ np.eye(len(size_G))[label_K] / np.maximum(count_KG, 1)
        moved_K = np.where(size_G[label_K] > 1, likeness_KG.argmax(1), label_K)
        if (moved_K == label_K).all():
            break
        label_K = _compact(moved_K)
    return label_K


def _compact(label_K: np.ndarray) -> np.ndarray:
    return np.unique(label_K, return_inverse=True)[1]


def tasks_without_groups(
    cosine_KK: np.ndarray, error_KK: np.ndarray, weight_K: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Cosines of tasks drawn from one Gaussian with the spectrum of `cosine_KK`, less their common part, with noise."""
    value_P = np.maximum(np.linalg.eigvalsh(cosine_KK)[1:], 0)
    drawn_KP = rng.standard_normal((len(cosine_KK), len(value_P))) * np.sqrt(value_P)
    drawn_KP -= weight_K @ drawn_KP
    drawn_KP /= np.linalg.norm(drawn_KP, axis=1, keepdims=True)
    noise_KK = np.triu(rng.standard_normal(cosine_KK.shape), 1)
    seen_KK = np.clip(drawn_KP @ drawn_KP.T + error_KK * (noise_KK + noise_KK.T), -1, 1)
    np.fill_diagonal(seen_KK, 1)
    return seen_KK


def _joined(cosine_KK: np.ndarray, among: np.ndarray, label_A: np.ndarray) -> np.ndarray:
    """The groups of all tasks: of those that were cut, and for each other task the one that it is most like."""
    likeness_KG = cosine_KK[:, among] @ np.eye(label_A.max() + 1)[label_A] / np.bincount(label_A)
    label_K = likeness_KG.argmax(1)
    label_K[among] = label_A
    return _compact(label_K)
