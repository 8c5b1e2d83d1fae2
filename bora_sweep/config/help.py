"""Help text of the configuration's keys, read from the dataclasses and the strings under their fields."""

import ast
import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from bora_sweep import config as schema


def describe_keys(sections: Sequence[str]) -> str:
    """Two lines for each key of these sections: the key with its default, and what it does."""
    lines = []
    for key, default, text in _keys(schema.Config, ""):
        if key.partition(".")[0] in sections:
            lines += [f"  {key}={_show_default(default)}", f"      {text}"]
    return "\n".join(lines)


def _keys(section: type, prefix: str) -> Iterator[tuple[str, Any, str]]:
    """Each dotted key below `section`, with its default and its help text."""
    texts = _field_docstrings(section)
    for field in dataclasses.fields(section):
        default = field.default_factory() if field.default is dataclasses.MISSING else field.default  # type: ignore[misc]
        if dataclasses.is_dataclass(default):
            yield from _keys(type(default), f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", default, texts.get(field.name, "")


def _field_docstrings(section: type) -> dict[str, str]:
    """The string under each field of a dataclass."""
    texts = {}
    for field, docstring in pairwise(ast.parse(inspect.getsource(section)).body[0].body):  # type: ignore[attr-defined]
        match field, docstring:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = " ".join(text.split())
    return texts


def _show_default(value: Any) -> str:
    if value is None:
        return "null"
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
