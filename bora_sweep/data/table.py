"""What every reader of rows needs: its columns by name, its file opened, and its rows as an Arrow table."""

import difflib
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

from bora_sweep.errors import InputError, plural

_ROWS = 5_000  # that are Python's objects at a time, before they are Arrow's


def check_columns(source: object, existing: Sequence[str], columns: Mapping[str, str]) -> list[str]:
    """The names in `columns` (configuration key to column name), each once.

    Raises:
        InputError: One of them is not in `existing`, or is there twice.
    """
    for key, name in columns.items():
        if existing.count(name) > 1:
            raise InputError(
                f"{source}: {existing.count(name)} columns are called {name!r} ({key}): rename all but one"
            )
        if name not in existing:
            lower = {column.lower(): column for column in existing}
            near = difflib.get_close_matches(name.lower(), lower, n=1)
            meant = f"; did you mean {lower[near[0]]!r}?" if near else "."
            raise InputError(
                f"{source}: no column {name!r} ({key}){meant} The columns are {', '.join(map(repr, existing))}: "
                f"set {key}=NAME"
            )
    return list(dict.fromkeys(columns.values()))


def table_of(rows: Iterator[Sequence[Any]], kinds: Mapping[str, pa.DataType | None]) -> pa.Table:
    """Rows as columns of these names and types, a type left out as Arrow finds it."""
    blocks = []
    while block := list(islice(rows, _ROWS)):
        columns = zip(kinds.items(), zip(*block, strict=True), strict=True)
        blocks.append(pa.table({name: pa.array(column, kind) for (name, kind), column in columns}))
    return pa.concat_tables(blocks, promote_options="permissive") if blocks else pa.table({})


def with_label_names(source: object, table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with the names of labels for their numbers, where `datasets` wrote them into the schema's metadata.

    A label of -1 is none.

    Raises:
        InputError: A label has no name.
    """
    try:
        features = dict(json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"])
    except (KeyError, TypeError, ValueError):  # `datasets` would find none either
        return table
    for place, name in enumerate(table.column_names):
        feature = features.get(name)
        if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel" or not feature.get("names"):
            continue
        labels, names = table.column(name).to_pylist(), feature["names"]
        for row, label in enumerate(labels):
            if label is not None and not (isinstance(label, int) and -1 <= label < len(names)):
                raise InputError(
                    f"{source}: row {row} (counted from 0): label {label!r} in column {name!r}, which has "
                    f"{plural(len(names), 'name')}"
                )
        named = [None if label in (None, -1) else names[label] for label in labels]
        table = table.set_column(place, name, pa.array(named, pa.large_string()))
    return table


def say_not_utf8(path: Path, error: UnicodeDecodeError) -> str:
    """Where the file is not UTF-8, and how to mend it."""
    with opened(path) as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode()
            except UnicodeDecodeError as within:
                place = f"line {number}: byte 0x{line[within.start]:02x}, byte {within.start + 1} of the line,"
                return f"{path}, {place} is not UTF-8; save the file as UTF-8"
    return f"{path}: not UTF-8: {error}"


def is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def opened(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if is_gzip(path) else open(path, "rb")


def opened_text(path: Path) -> IO[str]:
    if is_gzip(path):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")
