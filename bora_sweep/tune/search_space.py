"""What a search varies, as Optuna's distributions, and where a fit lies in it."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from optuna.distributions import FloatDistribution

from bora_sweep.config import Config, SearchConfig

SCALE = "scale."
"""Stands before a group's name in the search space."""

Space = dict[str, FloatDistribution]


def search_space(config: Config, groups: Sequence[str]) -> Space:
    """log tau; log lr_per_tau where the learning rate is coupled to tau; the log of each group's share of tau."""
    search = config.search
    space = {"tau": FloatDistribution(search.tau_low, search.tau_high, log=True)}
    if config.train.lr_per_tau is not None:
        space["lr_per_tau"] = FloatDistribution(search.lr_per_tau_low, search.lr_per_tau_high, log=True)
    for name in groups:
        space[SCALE + name] = FloatDistribution(search.group_scale_low, search.group_scale_high, log=True)
    return space


def params_in(
    space: Space, *, tau: float, lr_per_tau: float | None, group_scales: Mapping[str, float] | None
) -> dict[str, float]:
    """The values of a fit along the dimensions of `space`; a group that has no scale has 1.

    Args:
        space: Names of the dimensions, with their distributions.
        tau: Of the fit.
        lr_per_tau: Of the fit, where it is searched.
        group_scales: By group, relative to the first group.
    """
    values = {"tau": tau, "lr_per_tau": lr_per_tau}
    values |= {SCALE + name: scale for name, scale in (group_scales or {}).items()}
    return {name: values.get(name, 1.0) for name in space}


def is_within(space: Space, params: Mapping[str, float]) -> bool:
    """Whether all values lie within the bounds of `space`."""
    return all(space[name].low <= value <= space[name].high for name, value in params.items())


def spread_tau(index: int, count: int, search: SearchConfig) -> float:
    """The middle of the index-th of `count` equal parts of log tau.

    Args:
        index: From 0.
        count: Number of parts.
        search: Has the bounds of tau.
    """
    low, high = math.log(search.tau_low), math.log(search.tau_high)
    return math.exp(low + (high - low) * (index + 0.5) / count)


def widest_gap_tau(taus: Sequence[float], search: SearchConfig) -> float:
    """The middle, in log tau, of the widest gap that these values leave; of equal gaps, of the lowest.

    Args:
        taus: Values within the bounds of tau.
        search: Has the bounds.
    """
    logs = sorted(map(math.log, [search.tau_low, *taus, search.tau_high]))
    low, high = max(pairwise(logs), key=lambda gap: round(gap[1] - gap[0], 6))
    return math.exp((low + high) / 2)
