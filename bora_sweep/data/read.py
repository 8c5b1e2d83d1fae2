"""Rows in files: an Arrow table with the columns asked for, or the line that is wrong.

Arrow's readers do the work. Python's `csv` and `json` read a file only after they refused it, to find the line.
"""

import csv
import difflib
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pa_parquet

from bora_sweep.errors import InputError, one_line

_BLOCK_BYTES = 1 << 26  # a row must fit into one block


def counted(number: int, noun: str) -> str:
    """`1 task`, `1,200 tasks`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


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


def read_file(path: Path, columns: Mapping[str, str]) -> pa.Table:
    """The rows of a .parquet, .csv or .jsonl file, also with .gz after it.

    Args:
        path: The file.
        columns: Configuration key to column name; only these columns are read. Those of a .csv file are all strings.

    Raises:
        InputError: No such file, unknown type, no rows, a missing column, a malformed row, or not UTF-8.
    """
    readers = {".parquet": _read_parquet, ".csv": _read_csv, ".jsonl": _read_jsonl}
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if not path.is_file():
        raise InputError(
            f"{path}: no such file or folder; check data.path, and for a Hugging Face data set give data.source=hub"
        )
    if suffix not in readers:
        raise InputError(
            f"{path}: unknown file type {suffix!r}; data.path needs a {', '.join(readers)} file (also with .gz after "
            "it) or a folder with one subfolder of .txt files per task"
        )
    try:
        table = readers[suffix](path, columns)
        table.validate(full=True)
    except UnicodeDecodeError as error:
        raise InputError(say_not_utf8(path, error)) from None
    except (pa.ArrowException, OSError, EOFError, OverflowError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as {suffix}: {one_line(error)}") from error
    if table.num_rows == 0:
        raise InputError(f"{path}: no rows; data.path needs a file with documents")
    return table


def _read_parquet(path: Path, columns: Mapping[str, str]) -> pa.Table:
    with _open(path) as stream:
        # gzip.open cannot seek cheaply, and Parquet is read from its end
        file = pa_parquet.ParquetFile(pa.BufferReader(stream.read()) if _is_gzip(path) else path)
        return file.read(columns=check_columns(path, file.schema_arrow.names, columns))


def _read_csv(path: Path, columns: Mapping[str, str]) -> pa.Table:
    header = next(_csv_rows(path), (1, []))[1]
    if not header:
        raise InputError(f"{path}: the file is empty; data.path needs a header line and documents below it")
    needed = check_columns(path, header, columns)
    as_strings = pa_csv.ConvertOptions(
        include_columns=needed,
        column_types=dict.fromkeys(needed, pa.string()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    try:
        with _open(path) as stream:
            table = pa_csv.read_csv(
                stream,
                read_options=pa_csv.ReadOptions(block_size=_BLOCK_BYTES),
                parse_options=pa_csv.ParseOptions(newlines_in_values=True),
                convert_options=as_strings,
            )
    except pa.ArrowInvalid:
        _refuse_csv_row(path, len(header))
        raise
    if _num_quotes(path) % 2:  # Arrow lets a quote that is never closed swallow the rest of the file
        _refuse_csv_row(path, len(header))
    return table


def _refuse_csv_row(path: Path, num_fields: int) -> None:
    for line, row in _csv_rows(path):
        if len(row) != num_fields:
            raise InputError(
                f"{path}, line {line}: {counted(len(row), 'field')}, but the header has {num_fields}; put text that "
                'holds commas, quotes or line breaks between double quotes, and write a quote in it as ""'
            )


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Each row with the line it begins on, counted from 1; blank lines are passed over."""
    limit = csv.field_size_limit(2**31 - 1)
    line = 1
    try:
        with _open_text(path) as lines:
            rows = csv.reader(lines, strict=True)
            for row in rows:
                if row:
                    yield line, row
                line = rows.line_num + 1
    except csv.Error as error:
        what = "a double quote is never closed" if "end of data" in str(error) else str(error)
        raise InputError(f'{path}, line {line}: {what}; write a quote within a quoted field as ""') from None
    finally:
        csv.field_size_limit(limit)


def _num_quotes(path: Path) -> int:
    with _open(path) as stream:
        return sum(block.count(b'"') for block in iter(lambda: stream.read(_BLOCK_BYTES), b""))


def _read_jsonl(path: Path, columns: Mapping[str, str]) -> pa.Table:
    first = next(_json_objects(path), (1, None))[1]
    if first is None:
        raise InputError(f"{path}: the file is empty; data.path needs one JSON object per line")
    needed = check_columns(path, list(first), columns)
    kinds = {int: pa.int64(), float: pa.float64()}
    schema = pa.schema([(name, kinds.get(type(first[name]), pa.string())) for name in needed])
    try:
        with _open(path) as stream:
            table = pa_json.read_json(
                stream,
                read_options=pa_json.ReadOptions(block_size=_BLOCK_BYTES),
                parse_options=pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
            )
        table.validate(full=True)  # Arrow's JSON reader lets bytes that are not UTF-8 pass
    except pa.ArrowInvalid:
        return _read_jsonl_by_line(path, needed)
    # A line that is `null` reads as a row of nulls.
    return _read_jsonl_by_line(path, needed) if any(column.null_count for column in table.columns) else table


def _read_jsonl_by_line(path: Path, needed: list[str]) -> pa.Table:
    rows: list[dict[str, Any]] = []
    first: dict[str, tuple[int, Any]] = {}
    for line, value in _json_objects(path):
        row = {name: value.get(name) for name in needed}
        for name, cell in row.items():
            if cell is None:
                continue
            first_line, first_cell = first.setdefault(name, (line, cell))
            if type(cell) is not type(first_cell):
                raise InputError(
                    f"{path}, line {line}: {name!r} is {_short(cell)}, but {_short(first_cell)} in line {first_line}; "
                    "write a column as text throughout, or as numbers throughout"
                )
            if isinstance(cell, str) and any("\ud800" <= character <= "\udfff" for character in cell):
                raise InputError(f"{path}, line {line}: {name!r} holds half a surrogate pair: {_short(cell)}")
        rows.append(row)
    return pa.table({name: [row[name] for row in rows] for name in needed})


def _json_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each object with its line, counted from 1; blank lines are passed over."""
    with _open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{path}, line {number}: not JSON: {error.msg} at character {error.colno}: {line.strip()[:60]!r}"
                ) from None
            if not isinstance(value, dict):
                raise InputError(f"{path}, line {number}: need one JSON object per line, got {_short(value)}")
            yield number, value


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def say_not_utf8(path: Path, error: UnicodeDecodeError) -> str:
    """Where the file is not UTF-8, and how to mend it."""
    with _open(path) as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode()
            except UnicodeDecodeError as within:
                place = f"line {number}: byte 0x{line[within.start]:02x}, byte {within.start + 1} of the line,"
                return f"{path}, {place} is not UTF-8; save the file as UTF-8"
    return f"{path}: not UTF-8: {error}"


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if _is_gzip(path) else open(path, "rb")


def _open_text(path: Path) -> IO[str]:
    if _is_gzip(path):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")
