"""Read values by the type of their field: text to the letter, numbers and flags parsed, sections checked."""

import re
import reprlib
from collections.abc import Iterable, Mapping, Set
from dataclasses import asdict, fields, is_dataclass
from difflib import get_close_matches
from numbers import Integral, Real
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from bora_sweep.errors import InputError

FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
TYPE_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}
INT64 = range(-(2**63), 2**63)
KEY = re.compile(r"\s*[\w.-]{0,60}\s*")
"""What a message repeats of a key that is none; anything else may be the user's text."""
WORD = re.compile(r"\S{0,40}")
"""The same of an item of a list."""
LONGEST_SHOWN = 100
"""Characters of a value in a message."""


def members_of(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def union_members(annotation: Any) -> tuple[Any, ...]:
    """`members_of` without their bounds."""
    return tuple(_plain(member) for member in members_of(annotation))


def is_container(annotation: Any) -> bool:
    """Whether the type is a section, a list or a dictionary."""
    return is_dataclass(annotation) or get_origin(annotation) in (list, dict)


def annotation_of(section: type, key: str) -> Any:
    """The type of a dotted key within a section; None where there is no such key."""
    annotation: Any = section
    for name in key.split("."):
        if is_dataclass(annotation):
            annotation = {field.name: field.type for field in fields(annotation)}.get(name)
        else:
            annotation = get_args(annotation)[1] if get_origin(annotation) is dict else None
    return annotation


def coerce(value: Any, annotation: Any, key: str) -> Any:
    """`value` as the type of its field. A section becomes a dictionary of the keys that are given.

    Args:
        value: From a file or the command line, where everything but null is text; or from Python.
        annotation: The type of the field.
        key: Its dotted name, for messages.

    Raises:
        InputError: The value has another type, or a section has no such key.
    """
    members = union_members(annotation)
    for member in members:
        try:
            return _coerce_member(value, member, key)
        except InputError:
            raise
        except (ValueError, TypeError, OverflowError):
            continue
    raise InputError(f"{key}={_show_value(value)}: need {' or '.join(map(name_of_type, members))}")


def build(section: Any, values: Mapping[str, Any]) -> Any:
    """The dataclass `section` with `values`, which `coerce` has read. Keys that are missing keep their defaults."""
    return section(
        **{
            field.name: build(field.type, values[field.name]) if is_dataclass(field.type) else values[field.name]
            for field in fields(section)
            if field.name in values
        }
    )


def _plain(annotation: Any) -> Any:
    return annotation.__origin__ if get_origin(annotation) is Annotated else annotation


def _coerce_member(value: Any, annotation: Any, key: str) -> Any:
    origin, inner = get_origin(annotation), get_args(annotation)
    if is_dataclass(annotation):
        return _coerce_section(value, annotation, key)
    if origin is list:
        if isinstance(value, (str, bytes, Mapping, Set)) or not isinstance(value, Iterable):
            raise TypeError
        return [coerce(item, inner[0], f"{key}[{place}]") for place, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise TypeError
        return {coerce(name, str, key): coerce(item, inner[1], f"{key}.{name}") for name, item in value.items()}
    if annotation is NoneType:
        if value is not None:
            raise TypeError
        return None
    if origin is Literal:
        return inner[inner.index(value)]
    return {str: _to_text, int: _to_int, float: _to_float, bool: _to_bool}[annotation](value)


def _coerce_section(value: Any, section: Any, key: str) -> dict[str, Any]:
    if isinstance(value, section):
        value = asdict(value)
    annotations = {field.name: field.type for field in fields(section)}
    prefix = f"{key}." if key else ""
    if not isinstance(value, Mapping):
        raise InputError(f"{key}={_show_value(value)}: is a section of keys, such as {prefix}{next(iter(annotations))}")
    for name in value:
        if name not in annotations:
            if not KEY.fullmatch(str(name)):  # the user's text in the place of settings
                raise InputError(f"{key or 'settings'}: a key is no name of a setting; {_suggest_key(section, prefix)}")
            full = repr(f"{prefix}{name}")[:LONGEST_SHOWN]
            raise InputError(f"{full}: no such key; {_suggest_key(section, prefix, str(name), value[name])}")
    return {name: coerce(item, annotations[name], f"{prefix}{name}") for name, item in value.items()}


def _suggest_key(section: Any, prefix: str, name: str = "", value: Any = None) -> str:
    known = [field.name for field in fields(section)]
    if name.partition(".")[0] in known and "." in name:
        nested = _show_value(value) if isinstance(value, (str, Real)) else "…"
        for part in reversed(f"{prefix}{name}".split(".")):
            nested = f"{{{part!r}: {nested}}}"
        return f"a dotted key works in key=value only; write {nested} here"
    if prefix == "data." and not isinstance(
        value, (str, Real, NoneType, Mapping)
    ):  # documents, and no misspelt setting
        return "a dict is settings: give documents as a DataFrame or a DatasetDict"
    in_sections = [
        f"{outer.name}.{name}"
        for outer in fields(section)
        if is_dataclass(outer.type) and name in {field.name for field in fields(outer.type)}
    ]
    similar = in_sections or get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, similar))}?" if similar else f"the keys are {', '.join(known)}"


def _to_text(value: Any) -> str:
    if not isinstance(value, (str, PurePath)):
        raise TypeError
    text = str(value)
    text.encode()  # refuses half a surrogate pair, which stands in a file name that is not UTF-8
    return text


def _to_int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (str, Integral)):
        raise TypeError
    number = int(value)
    if number not in INT64:
        raise OverflowError
    return number


def _to_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (str, Real)):
        raise TypeError
    return float(value.replace(".inf", "inf").replace(".nan", "nan") if isinstance(value, str) else value)


def _to_bool(value: Any) -> bool:
    if str(value).lower() not in FLAGS:
        raise ValueError
    return FLAGS[str(value).lower()]


def name_of_type(annotation: Any) -> str:
    """The type in words, for messages."""
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
        return f"{'one of ' if len(choices) > 1 else ''}{', '.join(choices)}"
    if get_origin(annotation) is list:
        items = ("1", "10") if {int, float} & {*union_members(*get_args(annotation))} else ("a", "b")
        return f"a list such as [{', '.join(items)}]"
    return "keys with values" if get_origin(annotation) is dict else TYPE_NAMES[annotation]


def _show_value(value: Any) -> str:
    """The value on one line, shortened where it is long; of what no file could hold only the type."""
    if value is None:
        return "null"
    if isinstance(value, str) and value.isprintable() and len(value) <= LONGEST_SHOWN:
        return value
    if isinstance(value, (str, Real)):
        return reprlib.repr(value)
    if not isinstance(value, (list, tuple, set, dict)):
        return type(value).__name__
    parts = [*value, *value.values()] if isinstance(value, dict) else [*value]
    is_plain = all(
        WORD.fullmatch(part) if isinstance(part, str) else isinstance(part, (Real, NoneType)) for part in parts
    )
    return reprlib.repr(value) if is_plain else type(value).__name__
