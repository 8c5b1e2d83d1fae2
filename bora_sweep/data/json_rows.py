"""Read JSON lines, one object per line, with Python's own reader: numbers keep their digits, keys occur once."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from bora_sweep.data.columns import NAMES, NESTED
from bora_sweep.data.table import JSON, ChooseColumns, check_columns, open_text, to_table
from bora_sweep.errors import InputError

_KINDS = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", tuple: "an object"}
_NESTED = ("a list", "an object")
_HALF = re.compile("[\ud800-\udfff]")


def read_jsonl(path: Path, choose: ChooseColumns) -> tuple[pa.Table, list[str]]:
    """The rows of a file, with one type per column, and no notes. Tasks and ids that are whole numbers become text.

    Lists and objects become JSON in a string, in a column that says so (`bora_sweep.data.table.JSON`).

    Args:
        path: The file, compressed if its name ends in .gz.
        choose: Chooses the columns that are read.

    Raises:
        InputError: The file is empty, a column is missing, or a line is malformed.
    """
    first = next(_objects(path), (1, None))[1]
    if first is None:
        raise InputError(f"{path}: the file is empty; data.path needs one JSON object per line")
    columns = choose(path, list(dict(first)))
    needed = check_columns(path, list(dict(first)), columns)
    named = {columns[key] for key in NAMES if key in columns}
    nested = {columns[key] for key in NESTED if key in columns}
    first_cells: dict[str, tuple[int, Any]] = {}
    types: dict[str, pa.Field | None] = dict.fromkeys(needed)
    for name in nested:
        if not isinstance(dict(first)[name], str):
            types[name] = pa.field(name, pa.large_string(), metadata=JSON)

    def rows() -> Iterator[list[Any]]:
        for line, pairs in _objects(path):
            value = dict(pairs)
            if len(value) < len(pairs):
                _check_repeated(path, line, pairs, needed)
            cells = [value.get(name) for name in needed]
            for name, cell in zip(needed, cells, strict=True):
                if cell is not None:
                    _check_cell(
                        path, line, name, cell, first_cells.setdefault(name, (line, cell)),
                        is_name=name in named, may_be_nested=types[name] is not None,
                    )  # fmt: skip
            yield [
                _json(path, line, name, cell) if types[name] is not None else
                str(cell) if type(cell) is int and name in named else cell
                for name, cell in zip(needed, cells, strict=True)
            ]  # fmt: skip

    return to_table(rows(), types), []


def _json(path: Path, line: int, name: str, cell: Any) -> str | None:
    """A list or an object as JSON; each key once. `cell` has objects as tuples of pairs."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            _check_repeated(path, line, value, [key for key, _ in value])
            return {key: plain(inner) for key, inner in value}
        return [plain(inner) for inner in value] if isinstance(value, list) else value

    if cell is None:
        return None
    text = json.dumps(plain(cell), ensure_ascii=False)
    if _HALF.search(text):
        raise InputError(f"{path}, line {line}: {name!r} contains half a surrogate pair; replace it")
    return text


def _objects(path: Path) -> Iterator[tuple[int, tuple[tuple[str, Any], ...]]]:
    """The line of each object, counted from 1, and its keys and values. Blank lines are skipped."""
    decode = json.JSONDecoder(object_pairs_hook=tuple).decode
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                value = decode(line)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{path}, line {number}: not JSON: {error.msg} at character {error.colno}: {line.strip()[:60]!r}"
                    f"{_mend_layout(line)}"
                ) from None
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, or very deep lists
                raise InputError(f"{path}, line {number}: cannot be read: {error}") from None
            if not isinstance(value, tuple):
                shown = f"{_cut(line.strip())}{_mend_layout(line)}"
                raise InputError(f"{path}, line {number}: need one JSON object per line, got {shown}")
            yield number, value


def _mend_layout(line: str) -> str:
    """What to do about a list of objects, or an object over several lines."""
    if line.lstrip().startswith("["):
        return "; if the file is a list of objects, write each of them on a line of its own"
    return "; write the whole object on this line" if line.strip() == "{" else ""


def _check_repeated(path: Path, line: int, pairs: tuple[tuple[str, Any], ...], needed: list[str]) -> None:
    """Refuse an object with a needed key twice."""
    keys = [key for key, _ in pairs]
    for name in needed:
        if keys.count(name) > 1:
            raise InputError(f"{path}, line {line}: {name!r} occurs {keys.count(name)} times; keep one of them")


def _check_cell(
    path: Path, line: int, name: str, cell: Any, first_cell: tuple[int, Any], *, is_name: bool, may_be_nested: bool
) -> None:
    """Refuse a value whose type differs from the column's first value, or that a column cannot hold."""
    first_line, first = first_cell
    kind = _KINDS[type(cell)]
    if kind in _NESTED and not may_be_nested:
        before = f", as in line {first_line}" if _KINDS[type(first)] == "text" else ""
        raise InputError(f"{path}, line {line}: {name!r} is {kind}; it needs text{before}, or a number")
    if is_name and isinstance(cell, bool | float):
        raise InputError(f"{path}, line {line}: {name!r} is {_short(cell)}; it needs text, or a whole number")
    if kind != _KINDS[type(first)]:
        raise InputError(
            f"{path}, line {line}: {name!r} is {_short(cell)}, but {_short(first)} in line {first_line}; write a "
            "column alike throughout, as text, as numbers or as lists"
        )
    if type(cell) is int and not is_name and not -(2**63) <= cell < 2**63:
        raise InputError(f"{path}, line {line}: {name!r} is {_short(cell)}, beyond 64 bits; write it as text")
    if isinstance(cell, str) and _HALF.search(cell):
        raise InputError(f"{path}, line {line}: {name!r} contains half a surrogate pair: {_short(cell)}; replace it")


def _short(value: object) -> str:
    return _cut(json.dumps(_plain(value)))


def _plain(value: object) -> object:
    """The value with its objects, tuples of pairs, as dictionaries."""
    if isinstance(value, tuple):
        return {key: _plain(inner) for key, inner in value}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"
