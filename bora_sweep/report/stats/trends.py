"""Lines through tasks: does a quantity grow with the task's training documents?

D tasks with a value, G points of a line.
"""

from dataclasses import dataclass

import numpy as np

from bora_sweep.report.stats.bootstrap import Interval, student

FEWEST = 4  # tasks; a line through fewer has next to nothing to tell its spread by


@dataclass(frozen=True)
class Trend:
    """Least squares of `y` on log2 of the training documents, with intervals over tasks."""

    name: str  # improvement_independent, improvement_shared, distance, perplexity
    is_log: bool
    """The line is of the logarithm of the quantity: a power law."""
    num_tasks: int
    slope: Interval
    """Per doubling of the documents: of the quantity itself, or where `is_log` its relative change."""
    coefficients: np.ndarray
    """Intercept and slope of the line."""
    covariance: np.ndarray
    """Of the coefficients, over tasks."""
    low_documents: float
    high_documents: float

    def line(self, documents_G: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The line over numbers of documents, and its 95% band: of the mean of such tasks, not of single ones."""
        x_G2 = np.column_stack([np.ones(len(documents_G)), np.log2(documents_G)])
        middle_G = x_G2 @ self.coefficients
        error_G = np.sqrt(np.einsum("gi,ij,gj->g", x_G2, self.covariance, x_G2))
        reach_G = student(self.num_tasks - 2) * error_G
        low_G, high_G = middle_G - reach_G, middle_G + reach_G
        return (np.exp(middle_G), np.exp(low_G), np.exp(high_G)) if self.is_log else (middle_G, low_G, high_G)


def trend(name: str, documents_D: np.ndarray, values_D: np.ndarray, is_log: bool = False) -> Trend | None:
    """The line, or None with fewer than four tasks or with tasks all of one size.

    Its interval holds where tasks scatter unlike around the line, as small ones do more than large ones: standard
    errors are those of the jackknife over tasks (HC3; MacKinnon & White 1985), with Student's t.

    Args:
        name: What `values_D` are.
        documents_D: Training documents; tasks without any are left out.
        values_D: Tasks whose value is not finite, or with `is_log` not above 0, are left out.
        is_log: Fit the logarithm.
    """
    known_D = (documents_D > 0) & np.isfinite(values_D)
    if is_log:
        known_D &= values_D > 0
    sizes_D, y_D = documents_D[known_D], values_D[known_D]
    if len(sizes_D) < FEWEST or np.ptp(sizes_D) == 0:
        return None
    y_D = np.log(y_D) if is_log else y_D
    x_D2 = np.column_stack([np.ones(len(sizes_D)), np.log2(sizes_D)])
    inverse = np.linalg.inv(x_D2.T @ x_D2)
    beta = inverse @ x_D2.T @ y_D
    leverage_D = np.einsum("di,ij,dj->d", x_D2, inverse, x_D2)
    left_D = (y_D - x_D2 @ beta) / np.maximum(1 - leverage_D, 1e-6)
    covariance = inverse @ (x_D2.T * left_D**2) @ x_D2 @ inverse
    reach = student(len(y_D) - 2) * covariance[1, 1] ** 0.5
    ends = (float(beta[1]), float(beta[1] - reach), float(beta[1] + reach))
    slope = Interval(*(float(np.expm1(end)) for end in ends)) if is_log else Interval(*ends)
    low, high = float(sizes_D.min()), float(sizes_D.max())
    return Trend(name, is_log, len(y_D), slope, beta, covariance, low, high)
