"""Read CSV strictly, with Python's own reader; errors name the line.

Arrow's reader accepts text after a closing quote, and a quote that is never closed. It loses a line feed where one of
its blocks ends within CRLF. On one core it is no faster.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

import pyarrow as pa

from bora_sweep.data.table import ChooseColumns, check_columns, open_text, to_table
from bora_sweep.errors import InputError, plural

_FIELD = re.compile(r'"(?:[^"]|"")*"|[^,]*')
_OTHER_SEPARATORS = {";": "';'", "\t": "tabs", "|": "'|'"}
_LINE_BREAK = re.compile(r"\r\n|\r|\n")


def read_csv(path: Path, choose: ChooseColumns) -> tuple[pa.Table, list[str]]:
    """The rows of a file, with all values as strings, and notes. An empty field is null; `""` is an empty string.

    Args:
        path: The file, compressed if its name ends in .gz.
        choose: Chooses the columns that are read.

    Raises:
        InputError: The file is empty, a column is missing, or a row is malformed.
    """
    tasks: set[str] = set()
    suspects: list[tuple[int, int, str]] = []
    _refuse_other_separator(path, choose)
    with open_text(path) as lines:
        rows = csv_rows(path, lines)
        _, header, _ = next(rows, (1, [], []))
        if not header:
            raise InputError(f"{path}: the file is empty; data.path needs a header line and documents below it")
        columns = choose(path, header)
        needed = check_columns(path, header, columns)
        places, task_place = [header.index(name) for name in needed], header.index(columns["data.task_column"])

        def cells() -> Iterator[list[str | None]]:
            for line, row, raw in rows:
                if len(raw) > 1:
                    suspects.extend(_lines_like_rows(line, row, task_place))
                tasks.add(row[task_place])
                yield [row[place] if row[place] or _is_quoted(raw, place) else None for place in places]

        table = to_table(cells(), dict.fromkeys(needed, pa.large_string()))
    return table, _note_on_quotes([suspect for suspect in suspects if suspect[-1] in tasks])


def _refuse_other_separator(path: Path, choose: ChooseColumns) -> None:
    """Refuse a file whose header has another separator and no comma, or has all the columns by that separator."""
    with open_text(path) as lines:
        first = next((line.rstrip("\r\n") for line in lines if line.strip()), "")
    if re.fullmatch(r'"?sep=.?"?', first, re.IGNORECASE):
        raise InputError(
            f"{path}: its first line, {first!r}, is for spreadsheets; remove it, and save the file comma-separated"
        )
    is_one_field = "," not in first and first.count('"') % 2 == 0  # else the field may go on in the next line
    for separator, shown in _OTHER_SEPARATORS.items():
        if separator in first and (is_one_field or _has_columns(path, first.split(separator), choose)):
            raise InputError(f"{path}: its columns are separated by {shown}; save it comma-separated")


def _has_columns(path: Path, fields: list[str], choose: ChooseColumns) -> bool:
    """Whether all the columns that are read are among these fields of a header."""
    with suppress(InputError):
        choose(path, [field.strip('" ') for field in fields])
        return True
    return False


def csv_rows(source: object, lines: Iterable[str]) -> Iterator[tuple[int, list[str], list[str]]]:
    """Parse CSV: for each row, the header first, its first line counted from 1, its fields, and its raw lines.

    Blank lines are skipped. Lines of white space are too, if the header has several fields.

    Raises:
        InputError: A quoted field is not closed, or goes on after its closing quote; a row has another number of fields
            than the header.
    """
    limit = csv.field_size_limit(2**31 - 1)
    line, num_fields = 1, 0
    raw: list[str] = []

    def recorded() -> Iterator[str]:
        for text in lines:
            raw.append(text)
            yield text

    try:
        rows = csv.reader(recorded(), strict=True)
        for row in rows:
            is_blank = len(row) == 0 or (len(row) == 1 and num_fields != 1 and not raw[0].strip())
            num_fields = num_fields or (0 if is_blank else len(row))
            if not is_blank and len(row) != num_fields:
                raise InputError(
                    f"{source}, line {line}: {plural(len(row), 'field')}, but the header has {num_fields}; put text "
                    'that contains commas, quotes or line breaks between double quotes, and write a quote in it as ""'
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
    """Whether an empty field of a row is written `""`, which is an empty string and not null."""
    text, start = "".join(raw), 0
    for _ in range(place):
        start = cast(re.Match[str], _FIELD.match(text, start)).end() + 1
    return text.startswith('""', start)


def _lines_like_rows(first_line: int, row: list[str], task_place: int) -> Iterator[tuple[int, int, str]]:
    """Lines within a row's quoted fields that look like rows, as after a stray double quote.

    Each with the first line of the row, its own line, and the task it would have.
    """
    line = first_line
    for field in row:
        texts = _LINE_BREAK.split(field)
        for text in texts if len(texts) > 1 else []:
            fields = text.split(",")
            if len(fields) == len(row):
                yield first_line, line, fields[task_place]
            line += 1
        line -= len(texts) > 1  # the last line of a field is the first of the next


def _note_on_quotes(lines: list[tuple[int, int, str]]) -> list[str]:
    """A note on `_lines_like_rows`, and no error: a text may contain such lines."""
    if not lines:
        return []
    first_line, line, task = lines[0]
    return [
        f"{plural(len(lines), 'line')} within double quotes could be rows, the first is line {line}, of "
        f"task {task!r}, in the row that begins on line {first_line}: if a stray double quote joined them, write it as "
        '"" within double quotes'
    ]
