"""Which tau: the lowest on validation, the largest within one standard error, and how uncertain the best tau is.

M settings, V values of tau, S replicates.
"""

import math
from dataclasses import dataclass

import numpy as np

from bora_sweep.report.stats.bootstrap import Bootstrap, paired_bootstrap
from bora_sweep.report.stats.interval import Contrast, Interval
from bora_sweep.report.stats.smooth_curve import SmoothCurve, fit_smooth_curve
from bora_sweep.report.stats.summary import Summary


@dataclass(frozen=True)
class TauChoice:
    """The choices of tau by the validation documents, on the measure that the search minimised.

    Settings are by their index in `Summary.settings`. Lower values are better, of a metric too: see `Contrast`.
    """

    bootstrap: Bootstrap
    """Over all tasks' validation documents."""
    minimum: int
    """The fit that is best on validation."""
    one_standard_error: int
    """The fit at the largest tau whose validation mean lies within one standard error of the lowest."""
    above_minimum: dict[int, Contrast]
    """For each fit: its validation mean above the lowest, with the standard error of this difference."""
    as_good: list[int]
    """Fits whose difference to the lowest has a 95% interval that holds 0."""
    curve: SmoothCurve | None
    """Through the validation scores at 0 < tau < inf."""
    lowest_point: Interval | None
    """The tau of the lowest point, over resampled documents; None with fewer than three fits at 0 < tau < inf."""


def choose_tau(summary: Summary) -> TauChoice:
    """All choices of tau, by the validation documents alone."""
    bootstrap = paired_bootstrap(summary.chosen_by.validation)
    fits = [m for m in summary.fits if math.isfinite(summary.settings[m].objective)] or [summary.best]
    between = [m for m in fits if m in summary.between]
    taus_M = np.array([setting.tau for setting in summary.settings])
    above = {m: bootstrap.contrast(m, summary.best) for m in fits}
    replicates_SM, mean_M = bootstrap.with_seeds(), bootstrap.mean_M
    return TauChoice(
        bootstrap=bootstrap,
        minimum=summary.best,
        one_standard_error=one_standard_error(fits, above),
        above_minimum=above,
        as_good=[m for m in fits if m == summary.best or not above[m].bounds[0] > 0],
        curve=fit_smooth_curve(taus_M[between], mean_M[between], replicates_SM[:, between]),
        lowest_point=best_tau_interval(taus_M[fits], mean_M[fits], replicates_SM[:, fits])
        if len(between) > 2
        else None,
    )


def one_standard_error(fits: list[int], above: dict[int, Contrast]) -> int:
    """The last of `fits` that lies within one standard error of the lowest (Breiman et al. 1984, section 3.4.3).

    A larger tau is the simpler model: tasks are held closer together, down to the single adapter of tau = inf. The
    error is that of the paired difference and not of the lowest mean itself: documents that are hard at one tau
    are hard at all, and do not show which is better.

    Args:
        fits: Settings in ascending tau.
        above: The mean above the lowest, of each of `fits`.
    """
    return max((m for m in fits if above[m].estimate <= above[m].standard_error), key=fits.index, default=fits[0])


def smooth_test_curve(summary: Summary, bootstrap: Bootstrap) -> SmoothCurve | None:
    """The smooth curve through the test scores at 0 < tau < inf. It is drawn, and chooses nothing."""
    fits = summary.between
    taus_V = np.array([summary.settings[m].tau for m in fits])
    return fit_smooth_curve(taus_V, bootstrap.mean_M[fits], bootstrap.with_seeds()[:, fits])


def best_tau_interval(taus_V: np.ndarray, value_V: np.ndarray, value_SV: np.ndarray) -> Interval:
    """The tau of the lowest mean value, with the central 95% of the replicates' best tau.

    Args:
        taus_V: Ascending; may include 0 and inf.
        value_V: On validation, as observed.
        value_SV: In the replicates of the bootstrap.
    """
    observed = lowest_tau(taus_V, value_V[None])[0]
    # An order statistic: between a finite value and inf there is nothing to interpolate.
    low, high = np.quantile(lowest_tau(taus_V, value_SV), [0.025, 0.975], method="inverted_cdf")
    return Interval(float(observed), float(low), float(high))


def lowest_tau(taus_V: np.ndarray, value_SV: np.ndarray) -> np.ndarray:
    """tau_S where each of S curves is lowest: the vertex of the parabola over log tau through three fits.

    The three are the lowest fit and its two neighbours. At the ends of `taus_V`, and next to 0 and inf, there is no
    such parabola, and the tau of the lowest fit is returned. (A monotone interpolant would always be lowest at a fit.)

    Args:
        taus_V: Ascending; may include 0 and inf.
        value_SV: At each tau.
    """
    with np.errstate(divide="ignore"):
        log_tau_V = np.log(taus_V)
    lowest_S = value_SV.argmin(axis=1)
    tau_S = taus_V[lowest_S]
    for v in range(1, len(taus_V) - 1):
        left, right = log_tau_V[v] - log_tau_V[v - 1], log_tau_V[v + 1] - log_tau_V[v]
        if np.isfinite([left, right]).all():
            value_n3 = value_SV[lowest_S == v, v - 1 : v + 2]
            fall_n, rise_n = value_n3[:, 0] - value_n3[:, 1], value_n3[:, 2] - value_n3[:, 1]
            shift_n = (fall_n * right**2 - rise_n * left**2) / (2 * (fall_n * right + rise_n * left))
            tau_S[lowest_S == v] *= np.exp(shift_n)
    return tau_S
