"""Bounds of numbers: those that the help shows are those that are checked, at each end of each key."""

import math

import pytest

from bora_sweep.config import load_config
from bora_sweep.config.bounds import Bounds, bounds_of
from bora_sweep.config.help import Key, all_keys
from bora_sweep.errors import InputError

NUMBERS = [key for key in all_keys() if "number" in key.kind and "text" not in key.kind]
BOUNDED = [key for key in NUMBERS if bounds_of(key.annotation)]


def refusal(key: Key, number: float, is_whole: bool) -> str | None:
    """What is said of the key with this number, unless it is refused for another key's sake."""
    text = f"{number:.0f}" if is_whole and math.isfinite(number) else repr(number)
    if key.kind.startswith("a list"):
        text = f"[{text}]"
    elif key.kind.startswith("names"):
        text = f"{{A: {text}}}"
    try:
        load_config([f"{key.name}={text}"])
    except InputError as error:
        return str(error)
    return None


def ends(bounds: Bounds, is_whole: bool) -> list[float]:
    """Numbers just within and just beyond each bound."""
    step = 1 if is_whole else None
    found = [-math.inf, math.nan] if not is_whole else [-(2.0**62)]
    for end in (bounds.low, bounds.high):
        if math.isinf(end):
            found.append(math.inf if not is_whole else 2.0**62)
        elif step:
            found += [end - step, end, end + step]
        else:
            found += [math.nextafter(end, -math.inf), end, math.nextafter(end, math.inf)]
    return found


@pytest.mark.parametrize("key", BOUNDED, ids=lambda key: key.name)
def test_the_bounds_that_are_shown_are_checked(key):
    bounds = bounds_of(key.annotation)
    assert bounds is not None
    assert f"({bounds})" in key.kind
    is_whole = "whole" in key.kind
    for number in ends(bounds, is_whole):
        said = refusal(key, number, is_whole)
        is_refused = said is not None and f": need {bounds}" in said
        assert is_refused is (number not in bounds), (number, said)
        assert not is_refused or said.startswith(key.name)


def test_numbers_without_bounds_are_seeds_of_the_splits_alone():
    """A check in code that the help does not know of would be found here."""
    assert [key.name for key in NUMBERS if key not in BOUNDED] == ["data.seed"]
    assert refusal(next(key for key in NUMBERS if key not in BOUNDED), -(2.0**62), True) is None


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        (Bounds(1), "at least 1"),
        (Bounds(0), "0 or more"),
        (Bounds(0, with_high=True), "from 0 to inf"),
        (Bounds(0, with_low=False), "above 0"),
        (Bounds(0, with_low=False, with_high=True), "above 0, up to inf"),
        (Bounds(0, 1, with_low=False), "above 0 and below 1"),
        (Bounds(0, 1, with_high=True), "from 0 to 1"),
    ],
)
def test_bounds_in_words(bounds, words):
    assert str(bounds) == words


def test_infinity_is_told_to_be_the_matter():
    with pytest.raises(InputError, match=r"train\.learning_rate=inf: need above 0, and finite"):
        load_config(["train.learning_rate=inf"])
