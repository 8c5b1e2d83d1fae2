"""What a search varies, as Optuna's distributions, and where a fit lies in it."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from optuna.distributions import CategoricalDistribution, FloatDistribution

from bora_sweep.config import Config, SearchConfig

SCALE = "scale."
"""Stands before a group's name in the search space."""

Space = dict[str, FloatDistribution | CategoricalDistribution]


def searched_rates(config: Config) -> list[float]:
    """The learning rates that are tried, the run's own among them, ascending.

    Args:
        config: The sweep's; its rate is a number.
    """
    return sorted({config.learning_rate, *config.search.learning_rates})


def search_space(config: Config, groups: Sequence[str]) -> Space:
    """log tau; log tau_2 of groups of tasks; log lr_per_tau where the learning rate is coupled to tau; the rate where
    several are tried; the log of each share of tau of groups of parameters.
    """
    search = config.search
    space: Space = {"tau": FloatDistribution(search.tau_low, search.tau_high, log=True)}
    if searches_tau_2(config):
        space["tau_2"] = FloatDistribution(search.tau_2_low, search.tau_2_high, log=True)
    if config.train.lr_per_tau is not None:
        space["lr_per_tau"] = FloatDistribution(search.lr_per_tau_low, search.lr_per_tau_high, log=True)
    if search.learning_rates:
        space["learning_rate"] = CategoricalDistribution(searched_rates(config))
    for name in groups:
        space[SCALE + name] = FloatDistribution(search.group_scale_low, search.group_scale_high, log=True)
    return space


def searches_tau_2(config: Config) -> bool:
    """Whether tau_2 is searched: tasks are in groups, and the user has not fixed it."""
    return config.data.has_groups and config.prior.tau_2 is None


def params_in(
    space: Space, *, tau: float, tau_2: float | None, lr_per_tau: float | None, learning_rate: float | None,
    group_scales: Mapping[str, float] | None,
) -> dict[str, float]:  # fmt: skip
    """The values of a fit along the dimensions of `space`; a group that has no scale has 1.

    Args:
        space: Names of the dimensions, with their distributions.
        tau: Of the fit.
        tau_2: Of the fit, where it is searched; the upper end of the search stands for inf, None.
        lr_per_tau: Of the fit, where it is searched.
        learning_rate: The same.
        group_scales: By group, relative to the first group.
    """
    values = {"tau": tau, "lr_per_tau": lr_per_tau, "learning_rate": learning_rate}
    values |= {SCALE + name: scale for name, scale in (group_scales or {}).items()}
    if isinstance(searched := space.get("tau_2"), FloatDistribution):
        high = searched.high
        values["tau_2"] = high if tau_2 is None else min(tau_2, high)
    return {name: values.get(name, 1.0) for name in space}


def is_within(space: Space, params: Mapping[str, float]) -> bool:
    """Whether all values lie within the bounds of `space`, or are among its choices."""

    def has(distribution: FloatDistribution | CategoricalDistribution, value: float) -> bool:
        if isinstance(distribution, CategoricalDistribution):
            return value in distribution.choices
        return distribution.low <= value <= distribution.high

    return all(has(space[name], value) for name, value in params.items())


def spread_tau(index: int, count: int, search: SearchConfig) -> float:
    """The middle of the index-th of `count` equal parts of log tau.

    Args:
        index: From 0.
        count: Number of parts.
        search: Has the bounds of tau.
    """
    return _part(index, count, search.tau_low, search.tau_high)


def spread_tau_2(index: int, count: int, search: SearchConfig) -> float:
    """As `spread_tau`, but of every second value, from the first on, the upper end: the two-level model.

    So the report can say whether groups help.
    """
    high = search.tau_2_high
    return high if index % 2 == 0 else _part(index // 2, max(1, count // 2), search.tau_2_low, high)


def _part(index: int, count: int, low: float, high: float) -> float:
    """The middle of the index-th of `count` equal parts, on a log scale."""
    first, last = math.log(low), math.log(high)
    return math.exp(first + (last - first) * (index + 0.5) / count)


def widest_gap_tau(taus: Sequence[float], search: SearchConfig) -> float:
    """The middle, in log tau, of the widest gap that these values leave; of equal gaps, of the lowest.

    Args:
        taus: Values within the bounds of tau.
        search: Has the bounds.
    """
    logs = sorted(map(math.log, [search.tau_low, *taus, search.tau_high]))
    low, high = max(pairwise(logs), key=lambda gap: round(gap[1] - gap[0], 6))
    return math.exp((low + high) / 2)
