"""Read the rows of a file, a folder of text files, or a Hugging Face data set into an Arrow table."""

import codecs
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet

from bora_sweep.data.csv_rows import read_csv
from bora_sweep.data.json_rows import read_jsonl
from bora_sweep.data.table import ChooseColumns, check_columns, is_gzip, open_bytes
from bora_sweep.errors import InputError, one_line, plural

_CONVERSIONS = {
    ".tsv": "save it comma-separated, as .csv",
    ".ndjson": "rename it to .jsonl",
    ".json": "write one object per line, and rename it to .jsonl",
    ".xlsx": "save it as .csv",
}
"""What to do with files that are nearly of a known type."""


def read_file(path: Path, choose: ChooseColumns) -> tuple[pa.Table, list[str]]:
    """The rows of a .parquet, .csv or .jsonl file (also .gz), and notes.

    Args:
        path: The file.
        choose: Chooses the columns that are read. Those of a .csv file are all strings.

    Raises:
        InputError: The file does not exist, has an unknown type or no rows, lacks a column, has a malformed row, or is
            not UTF-8.
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
            + (f": {_CONVERSIONS[suffix]}" if suffix in _CONVERSIONS else "")
        )
    try:
        table, notes = readers[suffix](path, choose)
        table.validate(full=True)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None
    except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as {suffix}: {one_line(error)}") from error
    if table.num_rows == 0:
        raise InputError(f"{path}: no rows; data.path needs a file with documents")
    return table, notes


def _read_parquet(path: Path, choose: ChooseColumns) -> tuple[pa.Table, list[str]]:
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty; data.path needs a Parquet file with documents")
    with open_bytes(path) as stream:
        # Parquet is read from its end, and gzip.open cannot seek cheaply.
        file = pa_parquet.ParquetFile(pa.BufferReader(stream.read()) if is_gzip(path) else path)
        table = file.read(columns=_needed(path, file.schema_arrow.names, choose))
    return with_label_names(path, table, file.schema_arrow), []


def read_folder(path: Path, choose: ChooseColumns) -> tuple[pa.Table, list[str]]:
    """One document for each .txt file in the subfolders of `path`, and notes. Each subfolder is a task.

    The columns are task, text and document_id, which is the file's path below `path`. Hidden files and folders are
    skipped.

    Raises:
        InputError: No subfolder has a .txt file, a file cannot be read or is not UTF-8, or another column is chosen.
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
        raise InputError(f"{path}: a data set that `datasets` saved to disk; add data.source=hub")
    if not rows:
        raise InputError(
            f"{path}: no subfolder holds a .txt file; data.path needs a folder with one subfolder of .txt files per "
            "task, and for a folder of other files give data.source=hub"
        )
    num_empty = len(folders) - len({row["task"] for row in rows})
    notes = [f"{plural(num_empty, 'subfolder')} without a .txt file skipped"] if num_empty else []
    visible_below = (file for file in path.rglob("*") if not any(map(_is_hidden, file.relative_to(path).parents)))
    if num_elsewhere := sum(map(_is_text, visible_below)) - len(rows):
        notes.append(f"{plural(num_elsewhere, '.txt file')} not directly in a subfolder skipped")
    return pa.Table.from_pylist(rows).select(_needed(path, list(rows[0]), choose)), notes


def _needed(source: object, existing: Sequence[str], choose: ChooseColumns) -> list[str]:
    return check_columns(source, existing, choose(source, existing))


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")


def _is_text(file: Path) -> bool:
    return file.suffix.lower() == ".txt" and not _is_hidden(file) and not file.is_dir()


def read_hub(path: str, name: str | None, split: str, choose: ChooseColumns) -> pa.Table:
    """The rows of a Hugging Face data set, or of a local folder that `datasets` can load or has saved.

    Args:
        path: The name of the data set, or the folder.
        name: Its configuration, if it has several.
        split: Which of its splits is read.
        choose: Chooses the columns that are read.

    Raises:
        InputError: It cannot be loaded, has no rows, or lacks a column.
    """
    try:
        import datasets

        is_saved = _is_saved(Path(path))
        loaded: Any = datasets.load_from_disk(path) if is_saved else datasets.load_dataset(path, name, split=split)
    except Exception as error:  # network, name, split, access, a broken builder: each raises its own type
        raise InputError(
            f"data.path={path}: the data set cannot be loaded with data.hub_config={name}, data.hub_split={split}: "
            f"{one_line(error)}. Check these three, and the network: offline, only what is already downloaded can be "
            "read"
        ) from error
    dataset = _split_of_saved(path, loaded, name, split) if is_saved else loaded
    needed = _needed(f"data.path={path}", dataset.column_names, choose)
    if len(dataset) == 0:
        raise InputError(f"data.path={path}: no rows in data.hub_split={split}")
    table = dataset.select_columns(needed).with_format("arrow")[:]
    return with_label_names(f"data.path={path}", table, dataset.features.arrow_schema)


def _is_saved(folder: Path) -> bool:
    """Whether `datasets` wrote the folder with `save_to_disk`: one data set, or a dictionary of splits."""
    layouts = ({"dataset_dict.json"}, {"state.json", "dataset_info.json"})
    return any(all((folder / name).is_file() for name in names) for names in layouts)


def _split_of_saved(path: str, saved: Any, name: str | None, split: str) -> Any:
    """The split that is asked for; a data set that was saved without splits is read whole."""
    if name is not None:
        raise InputError(f"data.hub_config={name}: {path} was saved to disk, without configurations; drop it")
    if isinstance(saved, dict):
        if split not in saved:
            raise InputError(f"data.path={path}: no split data.hub_split={split}; the splits are {', '.join(saved)}")
        return saved[split]
    if split not in ("train", str(saved.split)):
        raise InputError(f"data.hub_split={split}: {path} was saved to disk as one data set, without splits; drop it")
    return saved


def _read_text(file: Path) -> str:
    try:
        str(file).encode()  # a name that is not UTF-8 contains half a surrogate pair
    except UnicodeEncodeError:
        raise InputError(f"{str(file)!a}: a name that is not UTF-8; rename it") from None
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({one_line(error)})") from None
    except UnicodeDecodeError as error:
        raise _not_utf8(file, error) from None


def _not_utf8(file: Path, error: UnicodeDecodeError) -> InputError:
    """The error for a file that is not UTF-8, with the place of the first byte that is not."""
    with open_bytes(file) as stream:
        is_utf16 = stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    mend = "save the file as UTF-8" + (", it is UTF-16 now" if is_utf16 else "")
    with open_bytes(file) as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode()
            except UnicodeDecodeError as in_line:
                byte = f"byte 0x{line[in_line.start]:02x}, byte {in_line.start + 1} of the line,"
                return InputError(f"{file}, line {number}: {byte} is not UTF-8; {mend}")
    return InputError(f"{file}: not UTF-8: {error}; {mend}")


def with_label_names(source: object, table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with the names of labels in place of their numbers, where `datasets` wrote the names into the metadata.

    A label of -1 means no label.

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
