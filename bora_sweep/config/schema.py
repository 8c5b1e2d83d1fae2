"""Values by the schema: a field's type says whether text is taken to the letter, or is a number, a list, a section."""

import reprlib
from collections.abc import Iterable, Mapping, Set
from dataclasses import asdict, fields, is_dataclass
from difflib import get_close_matches
from numbers import Integral, Real
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from bora_sweep.errors import InputError

FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
CALLED = {str: "text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}
INT64 = range(-(2**63), 2**63)
LONGEST_SHOWN = 100  # characters of a value in a message


def kinds_of(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def holds_others(kind: Any) -> bool:
    """Whether its values have values within."""
    return is_dataclass(kind) or get_origin(kind) in (list, dict)


def kind_at(section: type, key: str) -> Any:
    """The type of a dotted key; None where there is no such key."""
    kind: Any = section
    for name in key.split("."):
        if is_dataclass(kind):
            kind = {field.name: field.type for field in fields(kind)}.get(name)
        else:
            kind = get_args(kind)[1] if get_origin(kind) is dict else None
    return kind


def typed(value: Any, kind: Any, key: str) -> Any:
    """`value` as the schema has it; sections become dictionaries that hold the keys that were given.

    Args:
        value: From a file or the command line, where all but null is text, or from Python.
        kind: The type of the field.
        key: Its dotted name.

    Raises:
        InputError: It is of another type, or a section lacks a key that is given.
    """
    kinds = kinds_of(kind)
    for one in kinds:
        try:
            return _typed(value, one, key)
        except InputError:
            raise
        except (ValueError, TypeError, OverflowError):
            continue
    raise InputError(f"{key}={_shown(value)}: need {' or '.join(map(_called, kinds))}")


def built(section: Any, values: Mapping[str, Any]) -> Any:
    """The dataclass with these values, which are of its fields' types."""
    made = {
        field.name: built(field.type, values[field.name]) if is_dataclass(field.type) else values[field.name]
        for field in fields(section)
        if field.name in values
    }
    return section(**made)


def _typed(value: Any, kind: Any, key: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _section(value, kind, key)
    if origin is list:
        if isinstance(value, (str, bytes, Mapping, Set)) or not isinstance(value, Iterable):
            raise TypeError
        return [typed(item, inner[0], f"{key}[{place}]") for place, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise TypeError
        return {typed(name, str, key): typed(item, inner[1], f"{key}.{name}") for name, item in value.items()}
    if kind is NoneType:
        if value is not None:
            raise TypeError
        return None
    if origin is Literal:
        return inner[inner.index(value)]
    return {str: _text, int: _whole, float: _number, bool: _flag}[kind](value)


def _section(value: Any, section: Any, key: str) -> dict[str, Any]:
    if isinstance(value, section):
        value = asdict(value)
    kinds = {field.name: field.type for field in fields(section)}
    before = f"{key}." if key else ""
    if not isinstance(value, Mapping):
        raise InputError(f"{key}={_shown(value)}: is a section of keys, such as {before}{next(iter(kinds))}")
    for name in value:
        if name not in kinds:
            full = repr(f"{before}{name}")[:LONGEST_SHOWN]
            raise InputError(f"{full}: no such key; {_mend_unknown(section, before, str(name), value[name])}")
    return {name: typed(item, kinds[name], f"{before}{name}") for name, item in value.items()}


def _mend_unknown(section: Any, before: str, name: str, value: Any) -> str:
    known = [field.name for field in fields(section)]
    if name.partition(".")[0] in known and "." in name:
        for within in reversed(f"{before}{name}".split(".")):
            value = {within: value}
        return f"a dot is for key=value; write {reprlib.repr(value)} here"
    elsewhere = [
        f"{outer.name}.{name}"
        for outer in fields(section)
        if is_dataclass(outer.type) and name in {field.name for field in fields(outer.type)}
    ]
    near = elsewhere or get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {', '.join(known)}"


def _text(value: Any) -> str:
    if not isinstance(value, (str, PurePath)):
        raise TypeError
    text = str(value)
    text.encode()  # refuses halves of characters, which a name of a file that is not UTF-8 has
    return text


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (str, Integral)):
        raise TypeError
    number = int(value)
    if number not in INT64:
        raise OverflowError
    return number


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (str, Real)):
        raise TypeError
    return float(value.replace(".inf", "inf").replace(".nan", "nan") if isinstance(value, str) else value)


def _flag(value: Any) -> bool:
    if str(value).lower() not in FLAGS:
        raise ValueError
    return FLAGS[str(value).lower()]


def _called(kind: Any) -> str:
    """In words."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is list:
        return f"a list such as [{', '.join(('1', '10') if get_args(kind)[0] in (int, float) else ('a', 'b'))}]"
    return "keys with values" if get_origin(kind) is dict else CALLED[kind]


def _shown(value: Any) -> str:
    """On one line, and not all of what is long."""
    if value is None:
        return "null"
    if isinstance(value, str) and value.isprintable() and len(value) <= LONGEST_SHOWN:
        return value
    return reprlib.repr(value)
