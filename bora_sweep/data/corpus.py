"""From text to documents with a task and a split: validated, filtered, and nothing left out in silence."""

import dataclasses
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from bora_sweep.config import DataConfig
from bora_sweep.data.known_documents import known_splits, named_records, read_documents, record_of, with_fingerprints
from bora_sweep.data.read import read_file, read_folder, read_hub
from bora_sweep.data.split import sample_documents, split_documents
from bora_sweep.data.talk_of_norway import corpus as talk_of_norway
from bora_sweep.errors import InputError, plural
from bora_sweep.runs.storage import Folder

_MAX_FOLDER_BYTES = 240  # file systems hold 255; some leave room for a suffix


@dataclass(frozen=True)
class Corpus:
    """Documents of several tasks, split."""

    name: str
    """Short: the file's stem, the folder's or data set's name."""
    tasks: tuple[str, ...]
    """In the order used everywhere: by name, or by time where `data.time_column` is named, or by `data.selection`."""
    documents: pd.DataFrame
    """Columns task, text, document_id, split ("train", "validation", "test"), floor_nll_nats (NaN where unknown);
    ordered by task, then as in the source."""
    notes: tuple[str, ...]
    """What was left out or cut, and how much of it."""
    record: pd.DataFrame = field(default_factory=pd.DataFrame)
    """What the file of a run's documents holds (`bora_sweep.data.known_documents`)."""


def load_corpus(config: DataConfig, known_from: Sequence[Folder] | None = None, *, resumed: bool = False) -> Corpus:
    """Read, check, filter and split what `config` names.

    Args:
        config: What is read, and how it is split.
        known_from: Runs and exports whose documents stay in their splits (`known_documents.records_of`); left
            out: `data.split_from` alone.
        resumed: That it is the run's own record, of which there is nothing to say.

    Raises:
        InputError: It cannot be read, a row is malformed, a value is missing, fewer than two tasks are left, a task
            has too few documents to be split, two tasks have the same folder name, a key is for another source, or no
            documents are known there.
    """
    config.refuse_unread()
    known_from = named_records(config) if known_from is None else known_from
    known = pd.concat(map(read_documents, known_from), ignore_index=True) if known_from else None
    name, documents, notes = _read(config)
    documents = with_fingerprints(documents)  # of the texts as they are read, before any cut
    documents, tasks, left_out = _filter(documents, config)
    notes += left_out
    if len(tasks) < 2:
        because = "; ".join(notes) or f"data.task_column={config.task_column} holds one name only"
        raise InputError(f"{config.path or name}: need at least 2 tasks, got {len(tasks)}: {because}")
    _refuse_collisions(config, tasks)
    kept = None if known is None else known_splits(documents, known)
    documents["split"] = _split(documents, config, kept)
    if kept is not None and not resumed:
        known_there = f"{plural(len(kept) - kept.count(None), 'document')} known there"
        places = " and ".join(map(str, known_from))
        notes.append(f"splits kept from {places}: {known_there}, {kept.count(None):,} new ones drawn")
    by_task = np.argsort(pd.Categorical(documents["task"], categories=tasks).codes, kind="stable")
    columns = ["task", "text", "document_id", "split", "floor_nll_nats"]
    documents = documents.iloc[by_task].reset_index(drop=True)
    record, documents = record_of(documents, known), documents[columns]
    return Corpus(name, tuple(tasks), documents, tuple(notes), record)


def _split(documents: pd.DataFrame, config: DataConfig, kept: list[str | None] | None) -> list[str]:
    fractions = (config.train_fraction, config.validation_fraction, config.test_fraction)
    if config.split == "sample" and kept is None:
        return sample_documents(documents["task"], fractions, config.seed)
    return split_documents(documents["task"], documents["text"], fractions, config.seed, kept)


def folder_name(task: str) -> str:
    """A name for `task`'s folder that every file system takes: at most 100 characters, never a path or hidden.

    Letters, marks and digits of any script stay, and so do dots, hyphens and underscores within; the rest becomes an
    underscore. Names begin with none of the three, so `_global` stays free.
    """
    kept = "".join(c if unicodedata.category(c)[0] in "LMN" or c in ".-_" else " " for c in _nfc(task))
    name = "_".join(kept.split())[:100].encode()[:_MAX_FOLDER_BYTES].decode(errors="ignore").strip("._-")
    reserved = re.fullmatch(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³])(\..*)?", name, re.IGNORECASE)  # on Windows
    return f"task_{name}"[:100].rstrip("._-") if reserved or not name else name


def _read(config: DataConfig) -> tuple[str, pd.DataFrame, list[str]]:
    """The corpus's name, its documents, with a column time, and notes."""
    if config.kind == "synthetic":
        from bora_sweep.data import synthetic

        return "synthetic", synthetic.documents(config.synthetic).assign(time=0), []
    if config.kind == "talk_of_norway":
        documents, notes = talk_of_norway.documents(config)
        return "talk_of_norway", documents, notes
    path = Path(config.path or "")
    if config.kind == "hub":
        table, notes = read_hub(str(config.path), config.hub_config, config.hub_split, _columns(config)), []
    elif path.is_dir():
        config = dataclasses.replace(config, id_column=config.id_column or "document_id")
        table, notes = read_folder(path, _columns(config))
    else:
        table, notes = read_file(path, _columns(config))
    name = path.name if config.kind == "hub" or path.is_dir() else Path(path.name.removesuffix(".gz")).stem
    return name, _documents(table, config), notes


def _columns(config: DataConfig) -> dict[str, str]:
    named = {
        "data.text_column": config.text_column,
        "data.task_column": config.task_column,
        "data.id_column": config.id_column,
        "data.time_column": config.time_column,
    }
    return {key: name for key, name in named.items() if name is not None}


def _documents(table: pa.Table, config: DataConfig) -> pd.DataFrame:
    """Columns task, text, document_id, floor_nll_nats and time, one row for each of the table's, checked."""
    rows = np.arange(table.num_rows)
    documents = pd.DataFrame(
        {
            "task": _strings(table, "data.task_column", config, whole_numbers=True),
            "text": _strings(table, "data.text_column", config, whole_numbers=False),
            "document_id": rows.astype(str),
            "floor_nll_nats": np.nan,
            "time": 0,
        }
    )
    if config.id_column is not None:
        documents["document_id"] = ids = _strings(table, "data.id_column", config, whole_numbers=True)
        if ids.duplicated().any():
            again = int(ids.duplicated().argmax())
            first = int((ids == ids[again]).argmax())
            raise InputError(
                f"{config.path}: rows {first} and {again} (counted from 0) both have {ids[again]!r} in column "
                f"{config.id_column!r}; data.id_column needs a column without repeats, left out it is the row's number"
            )
    if config.time_column is not None:
        documents["time"] = _times(_decoded(table, config.time_column), config)
    return documents


def _strings(table: pa.Table, key: str, config: DataConfig, whole_numbers: bool) -> pd.Series:
    """The column that `key` names as strings, without a missing value; names also without a blank one."""
    name = _columns(config)[key]
    column = _decoded(table, name)
    kind = column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (is_text or pa.types.is_null(kind) or (whole_numbers and pa.types.is_integer(kind))):
        need = "text or whole numbers (1, not 1.0)" if whole_numbers else "text"
        raise InputError(f"{config.path}: column {name!r} ({key}) holds values of type {kind}; it needs {need}")
    strings = column.cast(pa.large_string()).to_pandas()
    missing = strings.isna() | (strings.str.strip() == "") if whole_numbers else strings.isna()
    if missing.any():
        raise InputError(
            f"{config.path}: column {name!r} ({key}) has no value in {plural(int(missing.sum()), 'row')}, the first "
            f"is row {int(missing.argmax())} (counted from 0); fill the gaps, or remove these rows"
        )
    return strings


def _decoded(table: pa.Table, name: str) -> pa.ChunkedArray:
    column = table.column(name)
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _times(column: pa.ChunkedArray, config: DataConfig) -> pd.Series:
    """Numbers, or else dates; a clock's word such as `now`, truth values, durations and times of day are neither."""
    kinds = ("string", "large_string", "string_view", "integer", "floating", "decimal", "date", "timestamp")
    if not any(getattr(pa.types, f"is_{kind}")(column.type) for kind in kinds):
        raise _no_time(column, 0, config)
    values = column.to_pandas()
    numbers = pd.Series(pd.to_numeric(values, errors="coerce"))
    finite = np.isfinite(numbers)
    if not column.null_count and finite.all():
        rounded = numbers.dtype.kind == "f" and values.astype(str).str.fullmatch(r"[+-]?\d+").all()
        return values.map(int).astype(object) if rounded else numbers
    texts = values.astype(str)
    dates = pd.to_datetime(texts, errors="coerce", format="ISO8601", utc=True)
    is_no_date = dates.isna() | texts.isin(["now", "today"])  # of which pandas makes the day of the run
    if is_no_date.any():
        neither = is_no_date & ~finite
        raise _no_time(column, int((neither if neither.any() else is_no_date).argmax()), config)
    return dates


def _no_time(column: pa.ChunkedArray, row: int, config: DataConfig) -> InputError:
    value = column[row].as_py()
    shown = "nothing" if value is None else repr(value) if isinstance(value, str) else str(value)
    shown = shown.lower() if isinstance(value, bool) else shown[:60]
    return InputError(
        f"{config.path}: row {row} (counted from 0): {shown} in column {config.time_column!r} (data.time_column) is no "
        f"time, of type {column.type}; write numbers throughout, or dates such as 1998-10-07"
    )


def _filter(documents: pd.DataFrame, config: DataConfig) -> tuple[pd.DataFrame, list[str], list[str]]:
    """The documents kept, their tasks in order, and notes."""
    notes = []
    earliest = pd.Series(documents.groupby("task")["time"].min()).to_dict()
    num_characters = documents["text"].str.len()
    too_short = (num_characters < config.min_characters) | (documents["text"].str.strip() == "")
    if num := int(too_short.sum()):
        below = f"shorter than data.min_characters={config.min_characters}, or blank, left out"
        notes.append(f"{plural(num, 'document')} {below}")
    too_long = num_characters[~too_short] > config.max_characters
    documents = documents.loc[~too_short].copy()
    if num := int(too_long.sum()):
        notes.append(f"{plural(num, 'document')} cut at data.max_characters={config.max_characters}")
        documents.loc[too_long, "text"] = documents.loc[too_long, "text"].str.slice(stop=config.max_characters)
        documents.loc[too_long, "floor_nll_nats"] = np.nan  # known for the whole document only
    if config.max_documents is not None:
        beyond = documents.groupby("task").cumcount() >= config.max_documents
        if num := int(beyond.sum()):
            of = plural(documents.loc[beyond, "task"].nunique(), "task")
            notes.append(f"{plural(num, 'document')} of {of} beyond data.max_documents={config.max_documents} left out")
        documents = documents.loc[~beyond]
    tasks, left_out = _choose_tasks(documents, earliest, config)
    return documents.loc[documents["task"].isin(tasks)].copy(), tasks, notes + left_out


def _choose_tasks(documents: pd.DataFrame, earliest: dict[Any, Any], config: DataConfig) -> tuple[list[str], list[str]]:
    """The tasks kept, by time and then by name, and notes. `earliest`: the first time of every task of the source."""
    notes = []
    num_documents = Counter(documents["task"])

    def leave_out(tasks: list[str], why: str) -> None:
        if tasks:
            num = sum(num_documents[task] for task in tasks)
            notes.append(f"{plural(len(tasks), 'task')} {why} left out ({plural(num, 'document')})")

    in_order = sorted(earliest, key=lambda task: (earliest[task], task))
    large = [task for task in in_order if num_documents[task] >= config.min_documents]
    small = [task for task in in_order if num_documents[task] < config.min_documents]
    leave_out(small, f"with fewer than data.min_documents={config.min_documents} documents")
    tasks = large[: config.max_tasks]
    leave_out(large[len(tasks) :], f"beyond the first data.max_tasks={config.max_tasks} by {config.tasks_by}")
    return tasks, notes


def _refuse_collisions(config: DataConfig, tasks: list[str]) -> None:
    task_of_folder: dict[str, str] = {}
    for task in tasks:
        folder = folder_name(task)
        other = task_of_folder.setdefault(folder.casefold(), task)
        if other != task:
            show = ascii if _nfc(other) == _nfc(task) else repr  # else the two would look alike
            raise InputError(
                f"{config.path}: tasks {show(other)} and {show(task)} would share the folder {folder!r}; rename one of "
                "them, or give both one name if they are one task"
            )


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)
