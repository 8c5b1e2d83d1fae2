"""Regression lines over tasks: does a quantity grow with the task's training documents?

D tasks with a value, G points of a line.

- J. G. MacKinnon, H. White (1985). Some heteroskedasticity-consistent covariance matrix estimators with improved finite
  sample properties. J. Econometrics 29, 305-325.
"""

from dataclasses import dataclass

import numpy as np

from bora_sweep.report.stats.interval import Interval, t_quantile

FEWEST_TASKS = 4
"""Fewer leave next to no residuals to estimate the spread from."""


@dataclass(frozen=True)
class Trend:
    """Least squares of a quantity on log2 of the training documents, with intervals over tasks."""

    name: str
    """`improvement_independent`, `improvement_shared`, `distance`, or the name of the measure, for its level."""
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
        """The line at these numbers of documents with its 95% band: of the mean of such tasks, not of single tasks."""
        x_G2 = np.column_stack([np.ones(len(documents_G)), np.log2(documents_G)])
        mean_G = x_G2 @ self.coefficients
        variance_G = np.einsum("gi,ij,gj->g", x_G2, self.covariance, x_G2)
        half_width_G = t_quantile(self.num_tasks - 2) * np.sqrt(np.maximum(variance_G, 0))  # rounding goes below
        low_G, high_G = mean_G - half_width_G, mean_G + half_width_G
        return (np.exp(mean_G), np.exp(low_G), np.exp(high_G)) if self.is_log else (mean_G, low_G, high_G)


def fit_trend(name: str, documents_D: np.ndarray, values_D: np.ndarray, is_log: bool = False) -> Trend | None:
    """Least squares on log2 of the training documents, with HC3 standard errors and Student's t.

    HC3 (MacKinnon & White 1985), the jackknife over tasks, holds where tasks scatter unequally around the line: small
    tasks scatter more than large ones.

    Args:
        name: What `values_D` are.
        documents_D: Training documents; tasks without any are left out.
        values_D: Tasks whose value is not finite, or with `is_log` not above 0, are left out.
        is_log: Fit the logarithm of the values.

    Returns:
        None with fewer than four tasks, or where all tasks have the same size.
    """
    known_D = (documents_D > 0) & np.isfinite(values_D)
    if is_log:
        known_D &= values_D > 0
    sizes_D, y_D = documents_D[known_D], values_D[known_D]
    if len(sizes_D) < FEWEST_TASKS or np.ptp(sizes_D) == 0:
        return None
    y_D = np.log(y_D) if is_log else y_D
    x_D2 = np.column_stack([np.ones(len(sizes_D)), np.log2(sizes_D)])
    inverse = np.linalg.inv(x_D2.T @ x_D2)
    beta = inverse @ x_D2.T @ y_D
    leverage_D = np.einsum("di,ij,dj->d", x_D2, inverse, x_D2)
    residual_D = (y_D - x_D2 @ beta) / np.maximum(1 - leverage_D, 1e-6)
    covariance = inverse @ (x_D2.T * residual_D**2) @ x_D2 @ inverse
    half_width = t_quantile(len(y_D) - 2) * covariance[1, 1] ** 0.5
    values = (float(beta[1]), float(beta[1] - half_width), float(beta[1] + half_width))
    return Trend(
        name=name,
        is_log=is_log,
        num_tasks=len(y_D),
        slope=Interval(*(float(np.expm1(value)) for value in values)) if is_log else Interval(*values),
        coefficients=beta,
        covariance=covariance,
        low_documents=float(sizes_D.min()),
        high_documents=float(sizes_D.max()),
    )
