"""Rows of JSON objects, one a line, by Python's own reader: numbers keep their digits, and no key is there twice."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from bora_sweep.data.table import check_columns, opened_text, table_of
from bora_sweep.errors import InputError

_NAMES = ("data.task_column", "data.id_column")  # of columns whose whole numbers are names, however many digits
_KINDS = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", tuple: "an object"}
_NESTED = ("a list", "an object")
_HALF = re.compile("[\ud800-\udfff]")


def read_jsonl(path: Path, columns: Mapping[str, str]) -> tuple[pa.Table, list[str]]:
    """The rows of a file, a column of one type throughout, and no notes. Tasks and ids that are whole numbers are text.

    Args:
        path: The file; .gz as its name says.
        columns: As for `read_file`.

    Raises:
        InputError: It is empty, a column is missing, or a line is malformed.
    """
    first = next(_objects(path), (1, None))[1]
    if first is None:
        raise InputError(f"{path}: the file is empty; data.path needs one JSON object per line")
    needed = check_columns(path, list(dict(first)), columns)
    named = {columns[key] for key in _NAMES if key in columns}
    before: dict[str, tuple[int, Any]] = {}

    def rows() -> Iterator[list[Any]]:
        for line, pairs in _objects(path):
            value = dict(pairs)
            if len(value) < len(pairs):
                _refuse_twice(path, line, pairs, needed)
            cells = [value.get(name) for name in needed]
            for name, cell in zip(needed, cells, strict=True):
                if cell is not None:
                    _refuse_cell(path, line, name, cell, before.setdefault(name, (line, cell)), name in named)
            yield [
                str(cell) if type(cell) is int and name in named else cell
                for name, cell in zip(needed, cells, strict=True)
            ]

    return table_of(rows(), dict.fromkeys(needed)), []


def _objects(path: Path) -> Iterator[tuple[int, tuple[tuple[str, Any], ...]]]:
    """The keys and values of each object, and its line, counted from 1; blank lines are passed over."""
    decode = json.JSONDecoder(object_pairs_hook=tuple).decode
    with opened_text(path) as lines:
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
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
                raise InputError(f"{path}, line {number}: cannot be read: {error}") from None
            if not isinstance(value, tuple):
                found = f"{_cut(line.strip())}{_mend_layout(line)}"
                raise InputError(f"{path}, line {number}: need one JSON object per line, got {found}")
            yield number, value


def _mend_layout(line: str) -> str:
    """What to do about a list of objects, or an object over several lines."""
    if line.lstrip().startswith("["):
        return "; if the file is a list of objects, write each of them on a line of its own"
    return "; write the whole object on this line" if line.strip() == "{" else ""


def _refuse_twice(path: Path, line: int, pairs: tuple[tuple[str, Any], ...], needed: list[str]) -> None:
    keys = [key for key, _ in pairs]
    for name in needed:
        if keys.count(name) > 1:
            raise InputError(f"{path}, line {line}: {name!r} is there {keys.count(name)} times; keep one of them")


def _refuse_cell(path: Path, line: int, name: str, cell: Any, before: tuple[int, Any], is_name: bool) -> None:
    """Refuse a value that is not as the first of its column, or that no column can hold as it is."""
    first_line, first = before
    kind = _KINDS[type(cell)]
    if kind in _NESTED:
        raise InputError(f"{path}, line {line}: {name!r} is {kind}; it needs text, or a number")
    if is_name and isinstance(cell, bool | float):
        raise InputError(f"{path}, line {line}: {name!r} is {_short(cell)}; it needs text, or a whole number")
    if kind != _KINDS[type(first)]:
        raise InputError(
            f"{path}, line {line}: {name!r} is {_short(cell)}, but {_short(first)} in line {first_line}; write a "
            "column as text throughout, or as numbers throughout"
        )
    if type(cell) is int and not is_name and not -(2**63) <= cell < 2**63:
        raise InputError(f"{path}, line {line}: {name!r} is {_short(cell)}, beyond 64 bits; write it as text")
    if isinstance(cell, str) and _HALF.search(cell):
        raise InputError(f"{path}, line {line}: {name!r} holds half a surrogate pair: {_short(cell)}")


def _short(value: object) -> str:
    return _cut(json.dumps(value))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"
