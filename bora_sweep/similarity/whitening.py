"""Whitening by Kronecker factors: gradients of a matrix in coordinates where the noise of documents is alike all round.

Without it a few loud directions, such as frequent words, decide all inner products. As in Shampoo (Gupta, Koren &
Singer 2018) the second moment of a document's gradient G of an (M, N) matrix is taken as L (x) R / tr L, with
L = E G G' and R = E G' G, and G becomes sqrt(tr L) L^(-1/2) G R^(-1/2).

Shapes: B gradients, a matrix (M, N).
"""

import numpy as np

FLOOR = 1e-2
"""Added to the eigenvalues of L and R, times their mean: directions that hardly any document has stay small."""


class Moments:
    """L and R of one matrix, from the documents so far.

    Args:
        num_rows: M.
        num_columns: N.
    """

    def __init__(self, num_rows: int, num_columns: int) -> None:
        self.left_MM, self.right_NN = (np.zeros((size, size)) for size in (num_rows, num_columns))
        self.count = 0

    def add(self, gradient_BMN: np.ndarray) -> None:
        """Add documents' gradients."""
        self.count += len(gradient_BMN)
        across_MC = gradient_BMN.transpose(1, 0, 2).reshape(gradient_BMN.shape[1], -1)
        down_CN = gradient_BMN.reshape(-1, gradient_BMN.shape[2])
        self.left_MM += across_MC @ across_MC.T
        self.right_NN += down_CN.T @ down_CN

    def whiten(self, gradient_BMN: np.ndarray) -> np.ndarray:
        """sqrt(tr L) L^(-1/2) G R^(-1/2) of each G."""
        scale = np.sqrt(np.trace(self.left_MM) / self.count)
        left_MM, right_NN = (_inverse_root(moment / self.count) for moment in (self.left_MM, self.right_NN))
        return (scale * left_MM).astype(gradient_BMN.dtype) @ gradient_BMN @ right_NN.astype(gradient_BMN.dtype)


def _inverse_root(moment_MM: np.ndarray) -> np.ndarray:
    """(moment + FLOOR of its mean eigenvalue)^(-1/2); zero where all gradients were zero."""
    value_M, vector_MM = np.linalg.eigh(moment_MM)
    if value_M[-1] <= 0:
        return np.zeros_like(moment_MM)
    raised_M = np.maximum(value_M, 0) + FLOOR * value_M.mean()
    return (vector_MM / np.sqrt(raised_M)) @ vector_MM.T
