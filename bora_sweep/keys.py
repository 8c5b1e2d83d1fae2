"""The configuration's keys as text for `--help`, read off the dataclasses and the docstrings under their fields."""

import ast
import dataclasses
import inspect
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from bora_sweep import config as schema


def describe_keys(sections: list[str]) -> str:
    """Every key of these sections with its default and what it does, one paragraph a key."""
    lines = []
    for key, default, text in _keys(schema.Config, ""):
        if key.partition(".")[0] in sections:
            lines += [f"  {key}={_show(default)}", f"      {text}"]
    return "\n".join(lines)


def _keys(section: type, prefix: str) -> Iterator[tuple[str, Any, str]]:
    notes = _docstrings(section)
    for field in dataclasses.fields(section):
        made = field.default_factory() if field.default is dataclasses.MISSING else field.default  # type: ignore[misc]
        if dataclasses.is_dataclass(made):
            yield from _keys(type(made), f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", made, notes.get(field.name, "")


def _docstrings(section: type) -> dict[str, str]:
    """The string under each field of a dataclass."""
    body = ast.parse(inspect.getsource(section)).body[0].body  # type: ignore[attr-defined]
    return {
        field.target.id: " ".join(note.value.value.split())
        for field, note in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(note, ast.Expr) and isinstance(note.value, ast.Constant)
    }


def _show(value: Any) -> str:
    if value is None:
        return "null"
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
