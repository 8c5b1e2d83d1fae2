"""Bounds of a key's numbers. They are part of its type: the check and the help read the same ones."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_args

from bora_sweep.errors import require


@dataclass(frozen=True)
class Bounds:
    """The numbers from `low` to `high`. NaN is none of them."""

    low: float
    high: float = math.inf
    with_low: bool = True
    """Whether `low` is one of them."""
    with_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value >= self.low if self.with_low else value > self.low
        return above and (value <= self.high if self.with_high else value < self.high)

    def __str__(self) -> str:
        if self.with_low and self.with_high:
            return f"from {self.low:g} to {self.high:g}"
        least = f"above {self.low:g}" if not self.with_low else f"at least {self.low:g}" if self.low else "0 or more"
        if math.isinf(self.high):
            return f"{least}, up to inf" if self.with_high else least
        return f"{least} and {'at most' if self.with_high else 'below'} {self.high:g}"


Number = Annotated[int, Bounds(0)]
Count = Annotated[int, Bounds(1)]
Several = Annotated[int, Bounds(2)]
Positive = Annotated[float, Bounds(0, with_low=False)]
NotNegative = Annotated[float, Bounds(0)]
Tau = Annotated[float, Bounds(0, with_high=True)]
"""Precision of a prior; inf ties the tasks entirely."""
Part = Annotated[float, Bounds(0, 1, with_low=False)]
"""A share that is neither nothing nor all."""


def bounds_of(annotation: Any) -> Bounds | None:
    """The bounds within a type, also of the items of a list or the values of a dictionary."""
    for part in (*getattr(annotation, "__metadata__", ()), *get_args(annotation)):
        found = part if isinstance(part, Bounds) else bounds_of(part)
        if found is not None:
            return found
    return None


def check_bounds(section: Any, name: str) -> None:
    """Refuse numbers of a section that are out of the bounds of their types.

    Args:
        section: A dataclass of the configuration.
        name: What its keys begin with, such as `train`.

    Raises:
        InputError: There is one.
    """
    for field in fields(section):
        bounds = bounds_of(field.type)
        if bounds is None:
            continue
        or_null = ", or null" if type(None) in get_args(field.type) else ""
        for key, number in _numbers(f"{name}.{field.name}", getattr(section, field.name)):
            and_finite = ", and finite" if number == math.inf else ""
            require(number in bounds, f"{key}={number}: need {bounds}{and_finite}{or_null}")


def _numbers(key: str, value: Any) -> Iterator[tuple[str, float]]:
    """The numbers of a value, each with the key that names it."""
    if isinstance(value, dict):
        yield from ((f"{key}.{name}", number) for name, number in value.items())
    elif isinstance(value, list):
        yield from ((f"{key}[{place}]", number) for place, number in enumerate(value))
    elif not isinstance(value, str | None):
        yield key, value
