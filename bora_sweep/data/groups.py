"""Which group each task is in: by a column of the data, or by a file of its own."""

import csv
import io
from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from bora_sweep.config import DataConfig
from bora_sweep.data.read import read_file
from bora_sweep.errors import InputError, and_more, plural
from bora_sweep.runs.storage import Folder, exists, list_files, read_bytes, write_bytes

_COLUMNS = ("task", "group")
_HEADER = ",".join(_COLUMNS).encode()


def write_groups(file: Folder, groups: pd.DataFrame) -> None:
    """Write a file that `data.groups_path` reads.

    Args:
        file: Its name ends with `.csv`.
        groups: Columns task and group, among others.
    """
    write_bytes(file, groups[[*_COLUMNS]].to_csv(index=False, lineterminator="\n").encode())


def is_groups_file(file: Folder) -> bool:
    """Whether it is a file as `write_groups` makes it, by its name and its first line."""
    return file.name.endswith(".csv") and exists(file) and read_bytes(file).split(b"\n", 1)[0].strip() == _HEADER


def shorten_groups(folder: Folder, tasks: Collection[str]) -> list[str]:
    """Take tasks out of the files of groups that are anywhere in a folder.

    Returns:
        The paths of those that named one, within the folder.

    Raises:
        InputError: Such a file is not a CSV in UTF-8.
    """
    shortened = []
    for file in filter(is_groups_file, list_files(folder, "**/*.csv")):
        try:
            rows = list(csv.reader(io.StringIO(read_bytes(file).decode(), newline="")))
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(
                f"{file}: begins as a file of groups, but is no CSV in UTF-8 ({error}); mend or remove it, and repeat"
            ) from None
        kept = [row for row in rows if not row or row[0] not in tasks]
        if len(kept) < len(rows):
            text = io.StringIO(newline="")
            csv.writer(text, lineterminator="\n").writerows(kept)
            write_bytes(file, text.getvalue().encode())
            shortened.append(str(file)[len(str(folder)) :].lstrip("/"))
    return shortened


def groups_of(documents: pd.DataFrame, tasks: Sequence[str], config: DataConfig) -> tuple[tuple[str, ...], list[str]]:
    """The group of each task, in the order of `tasks`, and notes; empty where there are no groups.

    Args:
        documents: Columns task and, with `data.group_column`, group.
        tasks: The tasks that are kept.
        config: Says where groups are.

    Raises:
        InputError: A task is in no group or in several, or the file of groups cannot be read.
    """
    if not config.has_groups:
        return (), []
    if config.groups_path is None:
        source, key = config.path or "synthetic", f"column {config.group_column!r} (data.group_column)"
        pairs = pd.DataFrame({name: documents[name] for name in _COLUMNS})
    else:
        source, key = config.groups_path, "column 'group'"
        pairs = _read_groups(Path(config.groups_path))
    group_of = _one_group_each(pairs, source, key)
    if missing := [task for task in tasks if task not in group_of]:
        raise InputError(
            f"data.groups_path={source}: has no row of task {missing[0]!r}{and_more(missing)}; add one with its "
            "group, or leave the task out by data.exclude_tasks"
        )
    groups = tuple(group_of[task] for task in tasks)
    alone = sum(groups.count(group) == 1 for group in set(groups))
    note = f"{plural(alone, 'group')} of one task: {'it ties' if alone == 1 else 'they tie'} it to no other task"
    return groups, [note] if alone else []


def _read_groups(path: Path) -> pd.DataFrame:
    """The columns task and group of a file."""
    if not path.is_file():
        raise InputError(f"data.groups_path={path}: no such file")

    def choose(source: object, existing: Sequence[str]) -> dict[str, str]:
        if missing := [name for name in _COLUMNS if name not in existing]:
            raise InputError(
                f"data.groups_path={source}: has no column {missing[0]!r}; it needs columns 'task' and 'group', and "
                f"has {', '.join(map(repr, existing))}"
            )
        return {f"data.{name}_column": name for name in _COLUMNS}

    table, _ = read_file(path, choose)
    return pd.DataFrame({name: _names(path, table, name) for name in _COLUMNS})


def _names(path: Path, table: pa.Table, name: str) -> pd.Series:
    """A column of names: text or whole numbers, none blank."""
    column = table.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not is_text and not pa.types.is_integer(kind):
        raise InputError(
            f"data.groups_path={path}: column {name!r} holds values of type {kind}; it needs text or whole numbers "
            "(1, not 1.0)"
        )
    names = column.cast(pa.large_string()).to_pandas()
    blank = names.isna() | (names.str.strip() == "")
    if blank.any():
        raise InputError(
            f"data.groups_path={path}: column {name!r} has no value in {plural(int(blank.sum()), 'row')}, the first is "
            f"row {int(blank.argmax())} (counted from 0); fill the gaps, or remove these rows"
        )
    return names


def _one_group_each(pairs: pd.DataFrame, source: object, key: str) -> dict[str, str]:
    """From task to group."""
    distinct = pairs.drop_duplicates()
    repeated = distinct["task"].duplicated()
    if repeated.any():
        task = distinct["task"].tolist()[int(repeated.argmax())]
        first, second, *_ = distinct["group"][distinct["task"] == task]
        raise InputError(
            f"{source}: task {task!r} is in group {first!r} and in group {second!r} by {key}; give all its rows one "
            "group, or make a task of each of its parts"
        )
    return dict(zip(distinct["task"], distinct["group"], strict=True))
