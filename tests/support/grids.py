"""Grids of parameters, of which a few combinations are quick and the rest slow."""

import itertools
from collections.abc import Collection

import pytest


def grid(*axes: Collection) -> list:
    """Every combination of one value of each axis. All but a few are marked slow.

    The others hold each value of each axis at least once: the n-th takes the n-th value of every axis, and of a
    shorter axis the n-th in turn.
    """
    quick = {tuple(n % len(axis) for axis in axes) for n in range(max(map(len, axes)))}
    combinations = itertools.product(*map(enumerate, axes))
    return [
        pytest.param(
            *(value for _, value in combination),
            marks=() if tuple(place for place, _ in combination) in quick else pytest.mark.slow,
        )
        for combination in combinations
    ]
