"""Rows of CSV by Python's own reader, strict: what it refuses is refused here with its line.

Arrow's reader takes text after a closing quote and a quote that is never closed, and loses a line feed where one of its
blocks ends within CRLF; on one core it is no faster.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import pyarrow as pa

from bora_sweep.data.table import check_columns, opened_text, table_of
from bora_sweep.errors import InputError, plural

_FIELD = re.compile(r'"(?:[^"]|"")*"|[^,]*')
_OTHER_SEPARATORS = {";": "';'", "\t": "tabs", "|": "'|'"}
_LINE_BREAK = re.compile(r"\r\n|\r|\n")


def read_csv(path: Path, columns: Mapping[str, str]) -> tuple[pa.Table, list[str]]:
    """The rows of a file, every value a string, and notes; a field with nothing in it is null, `""` an empty string.

    Args:
        path: The file; .gz as its name says.
        columns: As for `read_file`.

    Raises:
        InputError: It is empty, a column is missing, or a row is malformed.
    """
    tasks: set[str] = set()
    suspects: list[tuple[int, int, str]] = []
    _refuse_another_separator(path, columns)
    with opened_text(path) as lines:
        rows = csv_rows(path, lines)
        _, header, _ = next(rows, (1, [], []))
        if not header:
            raise InputError(f"{path}: the file is empty; data.path needs a header line and documents below it")
        needed = check_columns(path, header, columns)
        places, task_place = [header.index(name) for name in needed], header.index(columns["data.task_column"])

        def cells() -> Iterator[list[str | None]]:
            for line, row, raw in rows:
                if len(raw) > 1:
                    suspects.extend(_like_rows(line, row, task_place))
                tasks.add(row[task_place])
                yield [row[place] if row[place] or _is_quoted(raw, place) else None for place in places]

        table = table_of(cells(), dict.fromkeys(needed, pa.large_string()))
    return table, _suspicion([suspect for suspect in suspects if suspect[-1] in tasks])


def _refuse_another_separator(path: Path, columns: Mapping[str, str]) -> None:
    """Refuse a file whose header has no comma but another such sign, or has all columns by that sign."""
    with opened_text(path) as lines:
        first = next((line.rstrip("\r\n") for line in lines if line.strip()), "")
    if re.fullmatch(r'"?sep=.?"?', first, re.IGNORECASE):
        raise InputError(
            f"{path}: its first line, {first!r}, is for spreadsheets; remove it, and save the file comma-separated"
        )
    is_one_field = "," not in first and first.count('"') % 2 == 0  # else it may go on in the next line
    for sign, called in _OTHER_SEPARATORS.items():
        names = {name.strip('" ') for name in first.split(sign)}
        if sign in first and (is_one_field or names >= set(columns.values())):
            raise InputError(f"{path}: the file is separated by {called}; save it comma-separated")


def csv_rows(source: object, lines: Iterable[str]) -> Iterator[tuple[int, list[str], list[str]]]:
    """Each row, the header first, with the line it begins on, counted from 1, and the lines that it is on.

    Blank lines are passed over, of white space too where the header has several fields.

    Raises:
        InputError: A quoted field is not closed, or goes on after its closing quote; a row has not the header's fields.
    """
    limit = csv.field_size_limit(2**31 - 1)
    line, num_fields = 1, 0
    raw: list[str] = []

    def noted() -> Iterator[str]:
        for text in lines:
            raw.append(text)
            yield text

    try:
        rows = csv.reader(noted(), strict=True)
        for row in rows:
            is_blank = len(row) == 0 or (len(row) == 1 and num_fields != 1 and not raw[0].strip())
            num_fields = num_fields or (0 if is_blank else len(row))
            if not is_blank and len(row) != num_fields:
                raise InputError(
                    f"{source}, line {line}: {plural(len(row), 'field')}, but the header has {num_fields}; put text "
                    'that holds commas, quotes or line breaks between double quotes, and write a quote in it as ""'
                )
            if not is_blank:
                yield line, row, raw
            line = rows.line_num + 1
            raw.clear()
    except csv.Error as error:
        what = "a double quote is never closed" if "end of data" in str(error) else str(error)
        raise InputError(f'{source}, line {line}: {what}; write a quote within a quoted field as ""') from None
    finally:
        csv.field_size_limit(limit)


def _is_quoted(raw: Sequence[str], place: int) -> bool:
    """Whether a row's empty field is `""`, an empty text, and not nothing."""
    text, start = "".join(raw), 0
    for _ in range(place):
        start = cast(re.Match[str], _FIELD.match(text, start)).end() + 1
    return text.startswith('""', start)


def _like_rows(begun: int, row: list[str], task_place: int) -> Iterator[tuple[int, int, str]]:
    """The lines within a row's fields that would be rows of their own, but for a quote before them.

    Each with the line that the row begins on, its own, and its task.
    """
    line = begun
    for field in row:
        within = _LINE_BREAK.split(field)
        for text in within if len(within) > 1 else []:
            parts = text.split(",")
            if len(parts) == len(row):
                yield begun, line, parts[task_place]
            line += 1
        line -= len(within) > 1  # a field's last line is the next one's first


def _suspicion(lines: list[tuple[int, int, str]]) -> list[str]:
    """A note, not a refusal: a text may quote such lines."""
    if not lines:
        return []
    begun, line, task = lines[0]
    return [
        f"{plural(len(lines), 'line')} within double quotes would be rows of their own, the first line {line}, of "
        f"task {task!r}, in the row that begins on line {begun}: if a stray double quote joined them, write it as "
        '"" within double quotes'
    ]
