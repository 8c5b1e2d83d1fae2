"""A smooth curve over tau through the fits at 0 < tau < inf: a Gaussian process on log tau.

V fitted values of tau, G points of a grid from the lowest to the highest, S replicates.

- C. E. Rasmussen, C. K. I. Williams (2006). Gaussian Processes for Machine Learning. MIT Press. Sections 2.2 and 5.4.1.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Sum, WhiteKernel

from bora_sweep.report.stats.interval import Interval

FEWEST_FITS = 4
"""Through three fits passes a parabola, and there is no roughness to estimate."""
_GRID = 201
_Z = 1.96


@dataclass(frozen=True)
class SmoothCurve:
    """Mean value over tau, such as nats per token. The covariance is of the curve's shape, not of its overall level."""

    tau_G: np.ndarray
    value_G: np.ndarray
    covariance_GG: np.ndarray

    @property
    def lowest(self) -> int:
        """Grid index of the lowest point."""
        return int(self.value_G.argmin())

    @property
    def band(self) -> tuple[np.ndarray, np.ndarray]:
        """Pointwise 95% band of the mean value."""
        half_width_G = _Z * np.sqrt(np.maximum(np.diagonal(self.covariance_GG), 0))
        return self.value_G - half_width_G, self.value_G + half_width_G

    @property
    def as_good(self) -> Interval:
        """The tau of the lowest point, and the range of tau around it that is as good.

        The range ends where the curve's difference to its lowest point has a 95% interval above 0.
        """
        g, variance_G = self.lowest, np.diagonal(self.covariance_GG)
        above_G = self.value_G - self.value_G[g]
        error_G = np.sqrt(np.maximum(variance_G + variance_G[g] - 2 * self.covariance_GG[g], 0))
        worse = np.flatnonzero(above_G > _Z * error_G)
        low, high = worse[worse < g].max(initial=-1) + 1, worse[worse > g].min(initial=len(above_G)) - 1
        return Interval(*(float(self.tau_G[i]) for i in (g, low, high)))


def fit_smooth_curve(taus_V: np.ndarray, value_V: np.ndarray, value_SV: np.ndarray) -> SmoothCurve | None:
    """Posterior of a Gaussian process with a squared exponential kernel, fitted by marginal likelihood.

    Hard documents are hard at every tau: they move the whole curve and hardly bend it. So the noise of each fit is the
    bootstrap variance of its difference to the mean over tau. White noise of the fits themselves is added, which the
    likelihood estimates from the roughness of the curve.

    Args:
        taus_V: Ascending, 0 < tau < inf.
        value_V: As observed.
        value_SV: In the replicates of the bootstrap.

    Returns:
        None with fewer than four fits, or where one has no finite score.
    """
    if len(taus_V) < FEWEST_FITS or not np.isfinite(value_V).all():
        return None
    log_tau_V = np.log(taus_V)
    spread = float(np.ptp(log_tau_V))
    x_V = (log_tau_V - log_tau_V[0]) / spread
    mean, scale = value_V.mean(), value_V.std() or 1.0
    shape_SV = value_SV - value_SV.mean(axis=1, keepdims=True)
    noise_V = np.maximum(shape_SV.var(axis=0) / scale**2, 1e-8)
    kernel = ConstantKernel(1.0, (0.1, 100)) * RBF(0.3, (0.1, 3)) + WhiteKernel(1e-3, (1e-6, 0.5))
    process = GaussianProcessRegressor(kernel, alpha=noise_V)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a hyperparameter at its bound does not concern a reader
        process.fit(x_V[:, None], (value_V - mean) / scale)
    x_G = np.linspace(0, 1, _GRID)
    mean_G, covariance_GG = process.predict(x_G[:, None], return_cov=True)
    assert isinstance(process.kernel_, Sum) and isinstance(process.kernel_.k2, WhiteKernel)  # noqa: PT018, one narrowing
    covariance_GG = covariance_GG - process.kernel_.k2.noise_level * np.eye(_GRID)  # white noise is not of the curve
    tau_G = np.exp(log_tau_V[0] + spread * x_G)
    return SmoothCurve(tau_G, mean + scale * mean_G, scale**2 * covariance_GG)
