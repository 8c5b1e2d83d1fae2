"""Which columns of a file hold what, where neither settings nor usual names say so: for `bora-sweep init` alone.

What a run reads is named by its configuration. A guess becomes a line of the file that `init` writes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pandas as pd
import pyarrow as pa

from bora_sweep.config import DataConfig
from bora_sweep.config.data import COLUMNS
from bora_sweep.data.columns import SHAPES
from bora_sweep.data.read import read_file
from bora_sweep.data.split import SPLITS
from bora_sweep.errors import InputError, plural

LONG = 40
"""Mean characters from which a column is text, and no name."""
LONGEST_NAME = 100
"""Characters of the longest name of a task."""
REPEATS = 3
"""Rows of a task, on average, at least."""


@dataclass(frozen=True)
class Guess:
    """A column that was found, and why it was taken."""

    column: str
    why: str


class _NamesAreKnownError(Exception):
    """Ends a reader as soon as the names of the columns are known."""


def guess_columns(config: DataConfig) -> dict[str, Guess]:
    """The columns that `config` does not name, by their keys within section `data`.

    Args:
        config: With the file's path, and the columns that the user has named.

    Raises:
        InputError: The file cannot be read, several columns could hold the text, or several or none could name the
            tasks.
    """
    path = Path(config.path or "")
    if config.kind != "file" or path.is_dir():
        return {}
    names, guesses = _names(path), dict[str, Guess]()
    needs_text = not any(
        getattr(config, key) or usual in names for keys in SHAPES.values() for key, usual in keys.items()
    )
    needs_task = config.task_column == COLUMNS["task_column"] and config.task_column not in names
    given = {getattr(config, key) for key in COLUMNS} | {usual for keys in SHAPES.values() for usual in keys.values()}
    others = _texts(path, [name for name in names if name not in given])
    if "split" in others and config.split_column is None and _are_splits(others["split"]):
        guesses["split_column"] = Guess("split", "its values are train, validation and test")
    if needs_text:
        long = [name for name, texts in others.items() if texts.str.len().mean() >= LONG]
        if len(long) > 1:
            _refuse_texts(path, long)
        if long:
            guesses["text_column"] = Guess(long[0], "the only column of long text")
    if needs_task:
        found = {
            name: texts.nunique()
            for name, texts in others.items()
            if name not in {guess.column for guess in guesses.values()} and _could_name_tasks(texts)
        }
        if len(found) != 1:
            _refuse(path, names, found)
        ((name, number),) = found.items()
        guesses["task_column"] = Guess(name, f"the only column that repeats short names, {number:,} of them")
    return guesses


def _names(path: Path) -> list[str]:
    """The names of the file's columns."""
    names: list[str] = []

    def keep(_: object, existing: Sequence[str]) -> NoReturn:
        names.extend(existing)
        raise _NamesAreKnownError

    try:
        read_file(path, keep)
    except _NamesAreKnownError:
        return names
    return names


def _texts(path: Path, names: Sequence[str]) -> dict[str, pd.Series]:
    """The columns of text or whole numbers, as text, without those of another type or with holes."""
    texts = {}
    for name in names:
        try:
            table, _ = read_file(path, lambda _, __, name=name: {"data.task_column": name})
        except InputError:  # no column of names; what is read in the end is checked where it is read
            continue
        column = table.column(name)
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        is_name = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)
        if is_name and not column.null_count:
            texts[name] = column.to_pandas().astype(str)
    return texts


def _are_splits(texts: pd.Series) -> bool:
    return {"train"} <= set(texts) <= {*SPLITS}


def _could_name_tasks(texts: pd.Series) -> bool:
    lengths = texts.str.strip().str.len()
    return 2 <= texts.nunique() <= len(texts) / REPEATS and lengths.min() > 0 and lengths.max() <= LONGEST_NAME


def _refuse_texts(path: Path, long: Sequence[str]) -> NoReturn:
    first, last = long[0], long[-1]
    raise InputError(
        f"{path}: which column holds the text? It could be {', '.join(map(repr, long))}; say which, as in "
        f"data.text_column={last}; where one answers the other, add what stands before it and is not scored, "
        f'data.prompt="{{{first}}}"'
    )


def _refuse(path: Path, names: Sequence[str], found: dict[str, int]) -> NoReturn:
    if found:
        shown = ", ".join(f"{name!r} ({plural(number, 'name')})" for name, number in found.items())
        raise InputError(
            f"{path}: which column names the tasks? It could be {shown}; say which, as in data.task_column="
            f"{next(iter(found))}"
        )
    raise InputError(
        f"{path}: no column 'task', and none that repeats short names, as those of tasks would; its columns are "
        f"{', '.join(map(repr, names))}: set data.task_column=NAME"
    )
