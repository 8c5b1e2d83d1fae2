"""The configuration's keys as text for `--help`, read off the dataclasses and the docstrings under their fields."""

import ast
import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from bora_sweep import config as schema


def describe_keys(sections: Sequence[str]) -> str:
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
    found = {}
    for field, note in pairwise(ast.parse(inspect.getsource(section)).body[0].body):  # type: ignore[attr-defined]
        match field, note:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


def _show(value: Any) -> str:
    if value is None:
        return "null"
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
