"""Takes tasks out of an export: their folders, the names of their documents, and what a card sums up over all tasks."""

import json
from collections.abc import Sequence

from bora_sweep.data.known_documents import DOCUMENTS, read_documents, write_documents
from bora_sweep.errors import InputError
from bora_sweep.model.peft_io import BANK, CARD, GLOBAL, GROUP_PREFIX, GROUPS, TASKS, read_folder_names
from bora_sweep.runs.storage import Folder, exists, read_bytes, remove_folder, write_bytes
from bora_sweep.serve.bank import clear_rows, read_bank_rows
from bora_sweep.serve.model_card import card_without_sums


def tasks_of_export(out: Folder) -> set[str]:
    """The tasks that an export has, by `tasks.json` or by the record of its documents.

    Raises:
        InputError: A file of it is damaged.
    """
    recorded = set(read_documents(out)["task"]) if exists(out / DOCUMENTS) else set()
    names = read_bank_rows(out) if exists(out / BANK) else read_folder_names(out, key="")
    return {*names} | recorded


def shorten_export(out: Folder, tasks: Sequence[str]) -> list[str]:
    """Take tasks out of an export. Each step can be repeated; the files that name the tasks are written last.

    Args:
        out: The export's folder.
        tasks: Of `tasks_of_export`.

    Returns:
        Notes on what is gone with them.

    Raises:
        InputError: A file of the export is damaged.
    """
    if exists(out / BANK):
        return _shorten_bank(out, tasks)
    names = read_folder_names(out, key="")
    if not {*names} - {*tasks} and not exists(out / GLOBAL):
        raise InputError(f"{out}: no adapter would be left; remove the export as a whole")
    kept = {task: name for task, name in names.items() if task not in tasks}
    for folder in (out / name for name in dict.fromkeys([GLOBAL, *kept.values()])):
        if exists(folder / DOCUMENTS):
            _shorten_record(folder, tasks)
    notes = _shorten_card(out / GLOBAL / CARD, tasks)
    for name in {*names.values()} - {GLOBAL, *kept.values()}:  # tasks may share a folder
        remove_folder(out / name)
    if exists(out / GROUPS):
        notes += _shorten_groups(out, tasks)
    write_bytes(out / TASKS, json.dumps(kept, ensure_ascii=False, indent=2).encode())
    if exists(out / DOCUMENTS):
        _shorten_record(out, tasks)
    return notes


def _shorten_groups(out: Folder, tasks: Sequence[str]) -> list[str]:
    """Take tasks out of `groups.json`, and remove the adapters of groups that only they were in.

    The cards of their groups lose what they sum up; of all groups, where one of the tasks is in none that is known.

    Raises:
        InputError: It names something else than folders of groups within, since it may come from anywhere.
    """
    index = json.loads(read_bytes(out / GROUPS))
    before = index["tasks"]
    for name in index["groups"].values():
        if not name.startswith(GROUP_PREFIX) or "/" in name or "\\" in name:
            raise InputError(f"{out / GROUPS}: gives {name!r}; need the plain name of a folder, {GROUP_PREFIX}…")
    kept = {task: group for task, group in before.items() if task not in tasks}
    shorter = {before.get(task) for task in tasks}
    folders, notes = {}, []
    for group, name in index["groups"].items():
        if group in before.values() and group not in kept.values():
            remove_folder(out / name)
            continue
        folders[group] = name
        if group in shorter or None in shorter:
            notes += _shorten_card(out / name / CARD, tasks)
        if exists(out / name / DOCUMENTS):
            _shorten_record(out / name, tasks)
    write_bytes(out / GROUPS, json.dumps({"groups": folders, "tasks": kept}, ensure_ascii=False, indent=2).encode())
    return notes


def _shorten_bank(out: Folder, tasks: Sequence[str]) -> list[str]:
    """Set the tasks' rows to 0, which is no adapter; the rows of the others stay in their places."""
    row_of = read_bank_rows(out)
    kept = {task: row for task, row in row_of.items() if task not in tasks}
    cleared = sorted({*row_of.values()} - {*kept.values()})  # tasks may share a row
    clear_rows(out, cleared)
    notes = _shorten_card(out / CARD, tasks) + _shorten_card(out / GLOBAL / CARD, tasks)
    write_bytes(out / TASKS, json.dumps(kept, ensure_ascii=False, indent=2).encode())
    if exists(out / DOCUMENTS):
        _shorten_record(out, tasks)
    return [*notes, *(["their rows of the bank are 0; those of other tasks are where they were"] if cleared else [])]


def _shorten_record(folder: Folder, tasks: Sequence[str]) -> None:
    record = read_documents(folder)
    write_documents(folder, record.loc[~record["task"].isin(tasks)])


def _shorten_card(path: Folder, tasks: Sequence[str]) -> list[str]:
    if not exists(path):
        return []
    write_bytes(path, card_without_sums(read_bytes(path).decode(), tasks).encode())
    return [f"{path.parent.name}/{CARD} no longer has perplexities and sizes, which were sums over all tasks"]
