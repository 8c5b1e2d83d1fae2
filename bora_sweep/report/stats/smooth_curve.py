"""A smooth curve over tau through the fits between the ends: a Gaussian process on log tau.

V values of tau fitted, G of a grid between the lowest and the highest, S replicates.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Sum, WhiteKernel

from bora_sweep.report.stats.bootstrap import Interval

FEWEST = 4
"""Fits at 0 < tau < inf; through three a parabola passes, and there is no roughness to learn."""
_GRID = 201
_REACH = 1.96


@dataclass(frozen=True)
class Curve:
    """Nats per token over tau, with the covariance of its shape; how high it lies as a whole is left out of that."""

    tau_G: np.ndarray
    nats_per_token_G: np.ndarray
    covariance_GG: np.ndarray

    @property
    def lowest(self) -> int:
        """Where on the grid it is lowest."""
        return int(self.nats_per_token_G.argmin())

    @property
    def band(self) -> tuple[np.ndarray, np.ndarray]:
        """95%, point by point."""
        reach_G = _REACH * np.sqrt(np.maximum(np.diagonal(self.covariance_GG), 0))
        return self.nats_per_token_G - reach_G, self.nats_per_token_G + reach_G

    @property
    def as_good(self) -> Interval:
        """The lowest point, and how far to both sides the curve is not told from it: one stretch, by 95% intervals."""
        g, variance_G = self.lowest, np.diagonal(self.covariance_GG)
        above_G = self.nats_per_token_G - self.nats_per_token_G[g]
        error_G = np.sqrt(np.maximum(variance_G + variance_G[g] - 2 * self.covariance_GG[g], 0))
        told_G = np.flatnonzero(above_G > _REACH * error_G)
        low, high = told_G[told_G < g].max(initial=-1) + 1, told_G[told_G > g].min(initial=len(above_G)) - 1
        return Interval(*(float(self.tau_G[i]) for i in (g, low, high)))


def fit_curve(taus_V: np.ndarray, nats_per_token_V: np.ndarray, nats_per_token_SV: np.ndarray) -> Curve | None:
    """The posterior of a Gaussian process with a squared exponential kernel, its three numbers by marginal likelihood.

    Documents that are hard are so at every tau, which moves the curve as a whole and bends it little: the noise of a
    fit is the bootstrap's variance of its distance to the mean over tau. To that comes white noise, of the fits
    themselves, which the likelihood finds in the roughness of the curve.

    Args:
        taus_V: Ascending, 0 < tau < inf; the curve is None with fewer than four.
        nats_per_token_V: As observed.
        nats_per_token_SV: In replicates.
    """
    if len(taus_V) < FEWEST or not np.isfinite(nats_per_token_V).all():
        return None
    log_tau_V = np.log(taus_V)
    spread = float(np.ptp(log_tau_V))
    x_V = (log_tau_V - log_tau_V[0]) / spread
    middle, scale = nats_per_token_V.mean(), nats_per_token_V.std() or 1.0
    shape_SV = nats_per_token_SV - nats_per_token_SV.mean(axis=1, keepdims=True)
    noise_V = np.maximum(shape_SV.var(axis=0) / scale**2, 1e-8)
    kernel = ConstantKernel(1.0, (0.1, 100)) * RBF(0.3, (0.1, 3)) + WhiteKernel(1e-3, (1e-6, 0.5))
    process = GaussianProcessRegressor(kernel, alpha=noise_V)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a number at its bound is no news to a reader
        process.fit(x_V[:, None], (nats_per_token_V - middle) / scale)
    x_G = np.linspace(0, 1, _GRID)
    mean_G, covariance_GG = process.predict(x_G[:, None], return_cov=True)
    assert isinstance(process.kernel_, Sum) and isinstance(process.kernel_.k2, WhiteKernel)  # noqa: PT018, one narrowing
    covariance_GG = covariance_GG - process.kernel_.k2.noise_level * np.eye(_GRID)  # that of a further fit
    tau_G = np.exp(log_tau_V[0] + spread * x_G)
    return Curve(tau_G, middle + scale * mean_G, scale**2 * covariance_GG)
