"""Rows in files, folders and data sets: an Arrow table with the columns asked for, or what is wrong with them."""

import codecs
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet

from bora_sweep.data.csv_rows import read_csv
from bora_sweep.data.json_rows import read_jsonl
from bora_sweep.data.table import check_columns, is_gzip, opened, say_not_utf8, with_label_names
from bora_sweep.errors import InputError, one_line, plural

_INSTEAD = {
    ".tsv": "save it comma-separated, as .csv",
    ".ndjson": "rename it to .jsonl",
    ".json": "write one object per line, and rename it to .jsonl",
    ".xlsx": "save it as .csv",
}
"""What to do with files that are near to those that are read."""


def read_file(path: Path, columns: Mapping[str, str]) -> tuple[pa.Table, list[str]]:
    """The rows of a .parquet, .csv or .jsonl file, also with .gz after it; and notes.

    Args:
        path: The file.
        columns: Configuration key to column name; only these columns are read. Those of a .csv file are all strings.

    Raises:
        InputError: No such file, unknown type, no rows, a missing column, a malformed row, or not UTF-8.
    """
    readers = {".parquet": _read_parquet, ".csv": read_csv, ".jsonl": read_jsonl}
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if not path.is_file():
        raise InputError(
            f"{path}: no such file or folder; check data.path, and for a Hugging Face data set give data.source=hub"
        )
    if suffix not in readers:
        raise InputError(
            f"{path}: unknown file type {suffix!r}; data.path needs a {', '.join(readers)} file (also with .gz after "
            "it) or a folder with one subfolder of .txt files per task"
            + (f": {_INSTEAD[suffix]}" if suffix in _INSTEAD else "")
        )
    try:
        table, notes = readers[suffix](path, columns)
        table.validate(full=True)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None
    except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as {suffix}: {one_line(error)}") from error
    if table.num_rows == 0:
        raise InputError(f"{path}: no rows; data.path needs a file with documents")
    return table, notes


def _read_parquet(path: Path, columns: Mapping[str, str]) -> tuple[pa.Table, list[str]]:
    with opened(path) as stream:
        # gzip.open cannot seek cheaply, and Parquet is read from its end
        file = pa_parquet.ParquetFile(pa.BufferReader(stream.read()) if is_gzip(path) else path)
        table = file.read(columns=check_columns(path, file.schema_arrow.names, columns))
    return with_label_names(path, table, file.schema_arrow), []


def read_folder(path: Path, columns: Mapping[str, str]) -> tuple[pa.Table, list[str]]:
    """One document for each .txt file in the subfolders of `path`, which are the tasks; and notes.

    There are three columns: task, text and document_id, the file's path below `path`. Hidden files and folders are
    passed over.

    Raises:
        InputError: No subfolder holds a .txt file, one cannot be read or is not UTF-8, or `columns` names a fourth
            column.
    """
    visible = (entry for entry in path.iterdir() if entry.is_dir() and not _is_hidden(entry))
    folders = sorted(visible, key=lambda folder: folder.name)
    rows = [
        {"task": folder.name, "text": _read_text(file), "document_id": f"{folder.name}/{file.name}"}
        for folder in folders
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        if _is_text(file)
    ]
    if not rows and _is_saved(path):
        raise InputError(f"{path}: a data set that `datasets` saved to disk; also give data.source=hub")
    if not rows:
        raise InputError(
            f"{path}: no subfolder holds a .txt file; data.path needs a folder with one subfolder of .txt files per "
            "task, and for a folder of other files give data.source=hub"
        )
    num_empty = len(folders) - len({row["task"] for row in rows})
    notes = [f"{plural(num_empty, 'subfolder')} without a .txt file passed over"] if num_empty else []
    visible_below = (file for file in path.rglob("*") if not any(map(_is_hidden, file.relative_to(path).parents)))
    if num_elsewhere := sum(map(_is_text, visible_below)) - len(rows):
        notes.append(f"{plural(num_elsewhere, '.txt file')} not right in a subfolder passed over")
    return pa.Table.from_pylist(rows).select(check_columns(path, list(rows[0]), columns)), notes


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")


def _is_text(file: Path) -> bool:
    return file.suffix.lower() == ".txt" and not _is_hidden(file) and not file.is_dir()


def read_hub(path: str, name: str | None, split: str, columns: Mapping[str, str]) -> pa.Table:
    """The rows of a Hugging Face data set, or of a local folder that `datasets` can load or has saved.

    Raises:
        InputError: It cannot be loaded, has no rows, or lacks a column.
    """
    try:
        import datasets

        is_saved = _is_saved(Path(path))
        loaded: Any = datasets.load_from_disk(path) if is_saved else datasets.load_dataset(path, name, split=split)
    except Exception as error:  # network, name, configuration, split, access, a broken builder: each its own type
        raise InputError(
            f"data.path={path}: the data set cannot be loaded with data.hub_config={name}, data.hub_split={split}: "
            f"{one_line(error)}. Check these three, and the network: offline, only what is already downloaded can be "
            "read"
        ) from error
    dataset = _split_of_saved(path, loaded, name, split) if is_saved else loaded
    needed = check_columns(f"data.path={path}", dataset.column_names, columns)
    if len(dataset) == 0:
        raise InputError(f"data.path={path}: no rows in data.hub_split={split}")
    table = dataset.select_columns(needed).with_format("arrow")[:]
    return with_label_names(f"data.path={path}", table, dataset.features.arrow_schema)


def _is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of `datasets` wrote it: a data set, or several as splits."""
    names = ({"dataset_dict.json"}, {"state.json", "dataset_info.json"})
    return any(all((folder / name).is_file() for name in together) for together in names)


def _split_of_saved(path: str, saved: Any, name: str | None, split: str) -> Any:
    """The split of several that is asked for, or the one data set that is there: it is read whole."""
    if name is not None:
        raise InputError(f"data.hub_config={name}: {path} was saved to disk, with no configuration; drop it")
    if isinstance(saved, dict):
        if split not in saved:
            raise InputError(f"data.path={path}: no split data.hub_split={split}; there are {', '.join(saved)}")
        return saved[split]
    if split not in ("train", str(saved.split)):
        raise InputError(f"data.hub_split={split}: {path} was saved to disk as one data set, without splits; drop it")
    return saved


def _read_text(file: Path) -> str:
    try:
        str(file).encode()  # a name that is not UTF-8 has half a surrogate pair in it
    except UnicodeEncodeError:
        raise InputError(f"{str(file)!a}: a name that is not UTF-8; rename it") from None
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({one_line(error)})") from None
    except UnicodeDecodeError as error:
        raise _not_utf8(file, error) from None


def _not_utf8(file: Path, error: UnicodeDecodeError) -> InputError:
    with opened(file) as stream:
        is_utf16 = stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return InputError(say_not_utf8(file, error) + (", it is UTF-16 now" if is_utf16 else ""))
