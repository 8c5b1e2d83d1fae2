"""Shared by the readers of rows: find the columns that are asked for, open a file, and build an Arrow table."""

import difflib
import gzip
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

from bora_sweep.errors import InputError

ChooseColumns = Callable[[object, Sequence[str]], Mapping[str, str]]
"""From a source and the names of all its columns to those that are read, by what asks for each: a configuration key."""
JSON = {b"bora_sweep": b"json"}
"""Metadata of an Arrow column whose strings are JSON, for lists and objects that no one Arrow type may hold."""
_ROWS = 5_000
"""Rows that are Python objects at a time, before they become Arrow's."""


def check_columns(source: object, existing: Sequence[str], columns: Mapping[str, str]) -> list[str]:
    """The column names in `columns`, each once.

    Args:
        source: The file or data set, for messages.
        existing: The names of all its columns.
        columns: Configuration key to column name.

    Raises:
        InputError: A name is not in `existing`, or occurs twice there.
    """
    for key, name in columns.items():
        if existing.count(name) > 1:
            raise InputError(
                f"{source}: {existing.count(name)} columns are called {name!r} ({key}): rename all but one"
            )
        if name not in existing:
            lower = {column.lower(): column for column in existing}
            similar = difflib.get_close_matches(name.lower(), lower, n=1)
            suggestion = f"; did you mean {lower[similar[0]]!r}?" if similar else "."
            raise InputError(
                f"{source}: no column {name!r} ({key}){suggestion} The columns are {', '.join(map(repr, existing))}: "
                f"set {key}=NAME"
            )
    return list(dict.fromkeys(columns.values()))


def to_table(rows: Iterator[Sequence[Any]], types: Mapping[str, pa.DataType | pa.Field | None]) -> pa.Table:
    """An Arrow table of `rows`, with the columns of `types`; where a type is None, Arrow infers it."""
    blocks = []
    while block := list(islice(rows, _ROWS)):
        fields, arrays = [], []
        for (name, kind), column in zip(types.items(), zip(*block, strict=True), strict=True):
            if isinstance(kind, pa.Field):
                arrays.append(pa.array(column, kind.type))  # type: ignore[union-attr]
                fields.append(kind)
            else:
                arrays.append(pa.array(column, kind))
                fields.append(pa.field(name, arrays[-1].type))
        blocks.append(pa.table(arrays, schema=pa.schema(fields)))
    return pa.concat_tables(blocks, promote_options="permissive") if blocks else pa.table({})


def is_gzip(path: Path) -> bool:
    """Whether the file is compressed, as its name says."""
    return path.name.lower().endswith(".gz")


def open_bytes(path: Path) -> IO[bytes]:
    """The file for reading, decompressed if it is .gz."""
    return cast(IO[bytes], gzip.open(path)) if is_gzip(path) else open(path, "rb")


def open_text(path: Path) -> IO[str]:
    """The file as UTF-8 text with its own line breaks, decompressed if it is .gz."""
    if is_gzip(path):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")
