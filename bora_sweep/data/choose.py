"""Which documents and tasks are kept: by name, length, number of documents and of tasks. Notes say what is left out."""

from collections import Counter
from difflib import get_close_matches
from typing import Any

import numpy as np
import pandas as pd

from bora_sweep.config import DataConfig
from bora_sweep.errors import InputError, plural

SHOWN = 5
"""Names that a note lists."""


def leave_out_tasks(
    documents: pd.DataFrame, config: DataConfig, source: str, *, resumed: bool = False
) -> tuple[pd.DataFrame, list[str]]:
    """The documents without those of `data.exclude_tasks`, and a note on them.

    Args:
        documents: All of the source; column task.
        config: The names.
        source: For the message.
        resumed: Whether the run knows its documents: then a task may also have left the source.

    Raises:
        InputError: No row has such a name.
    """
    names, existing = list(dict.fromkeys(config.exclude_tasks)), set(documents["task"])
    unknown = [name for name in names if name not in existing]
    if unknown and not resumed:
        near = ", ".join(map(repr, get_close_matches(unknown[0], existing, n=3, cutoff=0.0)))
        raise InputError(
            f"data.exclude_tasks: {source} has no task {unknown[0]!r}; the nearest names are {near}. Correct it, or "
            "drop it"
        )
    found = [name for name in names if name in existing]
    if not found:
        return documents, []
    is_out = documents["task"].isin(found).to_numpy()
    shown = [*map(repr, found[:SHOWN]), *([f"{len(found) - SHOWN:,} more"] if len(found) > SHOWN else [])]
    which = f"{plural(len(found), 'task')} of data.exclude_tasks left out ({plural(int(is_out.sum()), 'document')})"
    return documents.loc[~is_out].reset_index(drop=True), [f"{which}: {', '.join(shown)}"]


def choose(documents: pd.DataFrame, config: DataConfig) -> tuple[pd.DataFrame, list[str], list[str]]:
    """The documents and tasks that `config` keeps.

    Args:
        documents: Columns task, text, content, floor_nll_nats and time.
        config: The limits.

    Returns:
        The documents that are kept, their tasks in order, and notes on what was left out or cut.
    """
    earliest = pd.Series(documents.groupby("task")["time"].min()).to_dict()
    documents, notes = _limit_lengths(documents, config)
    if config.max_documents is not None:
        is_beyond = documents.groupby("task").cumcount() >= config.max_documents
        if num := int(is_beyond.sum()):
            of = plural(documents.loc[is_beyond, "task"].nunique(), "task")
            notes.append(f"{plural(num, 'document')} of {of} beyond data.max_documents={config.max_documents} left out")
        documents = documents.loc[~is_beyond]
    tasks, task_notes = _choose_tasks(documents, earliest, config)
    return documents.loc[documents["task"].isin(tasks)].copy(), tasks, notes + task_notes


def _limit_lengths(documents: pd.DataFrame, config: DataConfig) -> tuple[pd.DataFrame, list[str]]:
    """The documents that are long enough, cut where they are too long; and notes."""
    notes = []
    num_characters = documents["text"].str.len()
    is_short = (num_characters < config.min_characters) | (documents["text"].str.strip() == "")
    if num := int(is_short.sum()):
        below = f"shorter than data.min_characters={config.min_characters}, or blank, left out"
        notes.append(f"{plural(num, 'document')} {below}")
    is_conversation = pd.Series([content is not None and "messages" in content for content in documents["content"]])
    is_beyond = is_conversation.to_numpy() & (num_characters > config.max_characters).to_numpy() & ~is_short.to_numpy()
    if num := int(is_beyond.sum()):  # a turn that breaks off would be learnt with the token that ends it
        notes.append(f"{plural(num, 'conversation')} longer than data.max_characters={config.max_characters} left out")
    documents = documents.loc[~is_short.to_numpy() & ~is_beyond].copy()
    is_long = documents["text"].str.len() > config.max_characters
    if num := int(is_long.sum()):
        notes.append(f"{plural(num, 'document')} cut at data.max_characters={config.max_characters}")
        documents.loc[is_long, "text"] = documents.loc[is_long, "text"].str.slice(stop=config.max_characters)
        documents.loc[is_long, "floor_nll_nats"] = np.nan  # known for the whole document only
    return documents, notes


def _choose_tasks(documents: pd.DataFrame, earliest: dict[Any, Any], config: DataConfig) -> tuple[list[str], list[str]]:
    """The tasks that are kept, by time and then by name, and notes. `earliest` has the first time of each task."""
    notes = []
    num_documents = Counter(documents["task"])

    def leave_out(tasks: list[str], why: str) -> None:
        if tasks:
            num = sum(num_documents[task] for task in tasks)
            notes.append(f"{plural(len(tasks), 'task')} {why} left out ({plural(num, 'document')})")

    in_order = sorted(earliest, key=lambda task: (earliest[task], task))
    fewest = config.fewest_documents
    large = [task for task in in_order if num_documents[task] >= fewest]
    small = [task for task in in_order if num_documents[task] < fewest]
    asked = f"data.min_documents={fewest} documents"
    asked = asked if config.min_documents is not None else f"{fewest} documents (data.small_tasks=leave_out)"
    leave_out(small, f"with fewer than {asked}" if fewest > 1 else "without a document that is kept")
    tasks = large[: config.max_tasks]
    leave_out(large[len(tasks) :], f"beyond the first data.max_tasks={config.max_tasks} by {config.tasks_by}")
    return tasks, notes
