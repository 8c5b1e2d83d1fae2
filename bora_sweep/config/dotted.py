"""Dotted keys: `prior.tau` names the value of `tau` within the section `prior`."""

from collections.abc import Mapping
from typing import Any


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"prior": {"tau": 1.0}}` as `{"prior.tau": 1.0}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def nest(key: str, value: Any) -> dict[str, Any]:
    """`prior.tau` and 1.0 as `{"prior": {"tau": 1.0}}`."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value
