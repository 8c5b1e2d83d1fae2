"""Inner products of adapters as the matrices B A that they add to the weights, which are never formed.

A and B are not identified: R A and B R^(-1) are the same adapter. <B_d A_d, B_e A_e> is the sum over all entries of
(B_d' B_e) * (A_d A_e'), products of rank by rank matrices.

Shapes: K adapters (J of a block), R rank, I in, O out.
"""

import numpy as np

BLOCK_ENTRIES = 1 << 24
"""Products of ranks that are in memory at a time."""


def product_gram(A_KRI: np.ndarray, B_KOR: np.ndarray) -> np.ndarray:
    """<B_d A_d, B_e A_e> of each two of K adapters at one site, as (K, K)."""
    K, R, _ = A_KRI.shape
    A_XI = A_KRI.reshape(K * R, -1).astype(np.float64)
    B_XO = B_KOR.transpose(0, 2, 1).reshape(K * R, -1).astype(np.float64)
    rows = max(1, BLOCK_ENTRIES // (K * R * R)) * R
    parts = []
    for start in range(0, K * R, rows):
        product_YX = (A_XI[start : start + rows] @ A_XI.T) * (B_XO[start : start + rows] @ B_XO.T)
        parts.append(product_YX.reshape(-1, R, K, R).sum((1, 3)))
    return np.concatenate(parts)


def deviation_cosines(gram_XX: np.ndarray) -> np.ndarray:
    """Cosines of the deviations of K adapters from the last of K + 1, Theta, as (K, K); NaN where one does not deviate.

    Args:
        gram_XX: Inner products of all K + 1, summed over sites.
    """
    with_mean_K, of_mean = gram_XX[:-1, -1], gram_XX[-1, -1]
    gram_KK = gram_XX[:-1, :-1] - with_mean_K[:, None] - with_mean_K + of_mean
    norm_K = np.diagonal(gram_KK)
    is_moved_K = norm_K > 1e-9 * max(of_mean, np.finfo(float).tiny)
    scale_K = np.where(is_moved_K, np.sqrt(np.maximum(norm_K, np.finfo(float).tiny)), np.nan)
    return np.clip(gram_KK / np.outer(scale_K, scale_K), -1, 1)
