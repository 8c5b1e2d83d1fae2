"""Rows in folders and data sets, as `bora_sweep.data.read` has them from a file."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from bora_sweep.data.read import check_columns, counted, say_not_utf8
from bora_sweep.errors import InputError, one_line


def read_folder(path: Path, columns: Mapping[str, str]) -> tuple[pa.Table, list[str]]:
    """One document for each .txt file in the subfolders of `path`, which are the tasks; and notes.

    There are three columns: task, text and document_id, the file's path below `path`. Hidden files and folders are
    passed over.

    Raises:
        InputError: No subfolder holds a .txt file, one is not UTF-8, or `columns` names a fourth column.
    """
    visible = (entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    folders = sorted(visible, key=lambda folder: folder.name)
    rows = [
        {"task": folder.name, "text": _read_text(file), "document_id": f"{folder.name}/{file.name}"}
        for folder in folders
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        if file.suffix.lower() == ".txt" and not file.name.startswith(".")
    ]
    if not rows:
        raise InputError(
            f"{path}: no subfolder holds a .txt file; data.path needs a folder with one subfolder of .txt files per "
            "task, and for a folder of other files give data.source=hub"
        )
    num_empty = len(folders) - len({row["task"] for row in rows})
    notes = [f"{counted(num_empty, 'subfolder')} without a .txt file passed over"] if num_empty else []
    return pa.Table.from_pylist(rows).select(check_columns(path, list(rows[0]), columns)), notes


def read_hub(path: str, name: str | None, split: str, columns: Mapping[str, str]) -> pa.Table:
    """The rows of a Hugging Face data set, or of a local folder that `datasets` can load.

    Raises:
        InputError: It cannot be loaded, has no rows, or lacks a column.
    """
    try:
        import datasets

        dataset = datasets.load_dataset(path, name, split=split)
    except Exception as error:  # network, name, configuration, split, access, a broken builder: each its own type
        raise InputError(
            f"data.path={path}: the data set cannot be loaded with data.hub_config={name}, data.hub_split={split}: "
            f"{one_line(error)}. Check these three, and the network: offline, only what is already downloaded can be "
            "read"
        ) from error
    needed = check_columns(f"data.path={path}", dataset.column_names, columns)
    if len(dataset) == 0:
        raise InputError(f"data.path={path}: no rows in data.hub_split={split}")
    return dataset.select_columns(needed).with_format("arrow")[:]


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(say_not_utf8(file, error)) from None
