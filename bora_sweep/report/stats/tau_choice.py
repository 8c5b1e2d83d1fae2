"""Which tau: the lowest on validation, the most shared one that is as good within an error, and how well it is known.

M settings, V values of tau, S replicates, G points of a grid over log tau.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.integrate import cumulative_trapezoid
from scipy.interpolate import PchipInterpolator

from bora_sweep.report.stats.bootstrap import Bootstrap, Contrast, Interval, paired_bootstrap
from bora_sweep.report.stats.smooth_curve import Curve, fit_curve
from bora_sweep.report.stats.summary import Summary

_GRID = 20_001


@dataclass(frozen=True)
class Choice:
    """Values of tau that validation speaks for; settings by their place in `Summary.settings`."""

    bootstrap: Bootstrap
    """Of all tasks' validation documents together."""
    minimum: int
    one_standard_error: int
    """The largest tau whose validation nats per token lie within one standard error of the lowest."""
    above_minimum: dict[int, Contrast]
    """Of each fit: its validation nats per token above the lowest, with the standard error of that difference."""
    as_good: list[int]
    """Fits whose difference to the lowest has a 95% interval that holds 0."""
    curve: Curve | None
    """Through the validation scores between the ends."""
    resampled: Interval | None
    """Where the curve is lowest, over resampled documents; None with fewer than three values between the ends."""
    posterior: Interval | None
    """`tau_posterior`; None likewise, and where it would pile up at an edge."""


def choose_tau(summary: Summary) -> Choice:
    """From the validation documents alone."""
    bootstrap = paired_bootstrap(summary.validation_documents)
    fits = [m for m in summary.fits if math.isfinite(summary.settings[m].objective)] or [summary.best]
    between = [m for m in fits if m in summary.between]
    taus_M = np.array([setting.tau for setting in summary.settings])
    above = {m: bootstrap.contrast(m, summary.best) for m in fits}
    replicates_SM, nats_M = bootstrap.with_seeds(), bootstrap.nats_per_token_M
    is_known = len(between) > 2
    return Choice(
        bootstrap=bootstrap,
        minimum=summary.best,
        one_standard_error=one_standard_error(fits, above),
        above_minimum=above,
        as_good=[m for m in fits if m == summary.best or not above[m].ends[0] > 0],
        curve=fit_curve(taus_M[between], nats_M[between], replicates_SM[:, between]),
        resampled=best_tau(taus_M[fits], nats_M[fits], replicates_SM[:, fits]) if is_known else None,
        posterior=_posterior(summary, taus_M, between) if is_known else None,
    )


def one_standard_error(fits: list[int], above: dict[int, Contrast]) -> int:
    """The last of `fits`, ascending in tau, that lies within one standard error of the lowest.

    A larger tau is the simpler model: tasks are held closer to one another, down to the single adapter of tau = inf.
    The error is that of the paired difference, not that of the lowest perplexity itself: documents that are hard for
    one tau are hard for all, and say nothing about which is better.
    """
    return max((m for m in fits if above[m].nats_per_token <= above[m].standard_error), key=fits.index, default=fits[0])


def curve_on_test(summary: Summary, bootstrap: Bootstrap) -> Curve | None:
    """The smooth curve through the test scores between the ends, which describes and does not choose."""
    fits = summary.between
    taus_V = np.array([summary.settings[m].tau for m in fits])
    return fit_curve(taus_V, bootstrap.nats_per_token_M[fits], bootstrap.with_seeds()[:, fits])


def _posterior(summary: Summary, taus_M: np.ndarray, between: list[int]) -> Interval | None:
    nll_nats_V = summary.validation_documents.nats_NM.sum(axis=0)[between]
    is_at_edge = nll_nats_V.argmin() in (0, len(between) - 1)
    return None if is_at_edge else tau_posterior(taus_M[between], nll_nats_V)


def tau_posterior(taus_V: np.ndarray, nll_nats_V: np.ndarray) -> Interval:
    """p(tau | validation) ~ exp(-nll(tau)), uniform in log tau between the ends: exp of log tau's mean, central 95%.

    nll is interpolated over log tau by PCHIP, which has no extremes of its own between the fits.

    Args:
        taus_V: Two or more, ascending, 0 < tau < inf.
        nll_nats_V: Finite sums over the validation split.
    """
    log_tau_G = np.linspace(np.log(taus_V[0]), np.log(taus_V[-1]), _GRID)
    nll_G = PchipInterpolator(np.log(taus_V), nll_nats_V)(log_tau_G)
    density_G = np.exp(nll_G.min() - nll_G)
    below_G = cumulative_trapezoid(density_G, log_tau_G, initial=0)
    mean = np.trapezoid(density_G * log_tau_G, log_tau_G) / below_G[-1]
    low, high = np.interp([0.025, 0.975], below_G / below_G[-1], log_tau_G)
    return Interval(float(np.exp(mean)), float(np.exp(low)), float(np.exp(high)))


def best_tau(taus_V: np.ndarray, nats_per_token_V: np.ndarray, nats_per_token_SV: np.ndarray) -> Interval:
    """The tau of the lowest nats per token, as observed and in the replicates: central 95%.

    Args:
        taus_V: Ascending; 0 and inf may be among them.
        nats_per_token_V: On validation, as observed.
        nats_per_token_SV: In the replicates of the bootstrap.
    """
    observed = lowest_tau(taus_V, nats_per_token_V[None])[0]
    # An order statistic: between a finite value and inf there is nothing to interpolate.
    low, high = np.quantile(lowest_tau(taus_V, nats_per_token_SV), [0.025, 0.975], method="inverted_cdf")
    return Interval(float(observed), float(low), float(high))


def lowest_tau(taus_V: np.ndarray, nll_SV: np.ndarray) -> np.ndarray:
    """Where each of S curves is lowest: the vertex of the parabola over log tau by its lowest point and the neighbours.

    An interpolant without extremes of its own is lowest at one of the fits, and would tell no more than which. At the
    ends of `taus_V`, and beside 0 and inf, there is no parabola: there it is the fit itself.
    """
    with np.errstate(divide="ignore"):
        log_tau_V = np.log(taus_V)
    lowest_S = nll_SV.argmin(axis=1)
    tau_S = taus_V[lowest_S]
    for v in range(1, len(taus_V) - 1):
        left, right = log_tau_V[v] - log_tau_V[v - 1], log_tau_V[v + 1] - log_tau_V[v]
        if np.isfinite([left, right]).all():
            nll_n3 = nll_SV[lowest_S == v, v - 1 : v + 2]
            fall_n, rise_n = nll_n3[:, 0] - nll_n3[:, 1], nll_n3[:, 2] - nll_n3[:, 1]
            shift_n = (fall_n * right**2 - rise_n * left**2) / (2 * (fall_n * right + rise_n * left))
            tau_S[lowest_S == v] *= np.exp(shift_n)
    return tau_S
