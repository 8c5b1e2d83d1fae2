"""The corpus of a run: documents with a task and a split, read, checked and filtered; notes say what is left out."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from bora_sweep.config import DataConfig
from bora_sweep.data.choose import choose
from bora_sweep.data.columns import documents_of, named_columns
from bora_sweep.data.known_documents import known_splits, make_record, read_documents, split_from, with_fingerprints
from bora_sweep.data.read import read_file, read_folder, read_hub
from bora_sweep.data.split import sample_documents, split_documents
from bora_sweep.data.talk_of_norway import corpus as talk_of_norway
from bora_sweep.data.task_folders import refuse_shared_folders
from bora_sweep.errors import InputError, plural
from bora_sweep.runs.storage import Folder

COLUMNS = ["task", "text", "document_id", "split", "floor_nll_nats"]


@dataclass(frozen=True)
class Corpus:
    """Documents of several tasks, split into train, validation and test."""

    name: str
    """Short: the stem of the file, or the name of the folder or data set."""
    tasks: tuple[str, ...]
    """In the order used everywhere: by name, or by time with `data.time_column`, or by `data.selection`."""
    documents: pd.DataFrame
    """Columns task, text, document_id, split ("train", "validation", "test") and floor_nll_nats (NaN where unknown).
    Ordered by task, then as in the source."""
    notes: tuple[str, ...]
    """What was left out or cut, and how much of it."""
    record: pd.DataFrame = field(default_factory=pd.DataFrame)
    """What the run's file of documents holds (`bora_sweep.data.known_documents`)."""


def load_corpus(config: DataConfig, known_from: Sequence[Folder] | None = None, *, resumed: bool = False) -> Corpus:
    """Read, check, filter and split the corpus that `config` names.

    Args:
        config: What is read, and how it is split.
        known_from: Folders of runs and exports whose documents stay in their splits (`record_folders`). Left out: that
            of `data.split_from` alone.
        resumed: Whether the record is the run's own, so that no note is needed.

    Raises:
        InputError: The source cannot be read, a row is malformed, a value is missing, fewer than two tasks are left, a
            task has too few documents, two tasks have the same folder name, a key belongs to another source, or a
            folder has no record of documents.
    """
    config.refuse_unused_keys()
    known_from = split_from(config) if known_from is None else known_from
    known = pd.concat(map(read_documents, known_from), ignore_index=True) if known_from else None
    name, documents, notes = _read_source(config)
    documents = with_fingerprints(documents)  # before any text is cut
    documents, tasks, more_notes = choose(documents, config)
    notes += more_notes
    if len(tasks) < 2:
        because = "; ".join(notes) or f"data.task_column={config.task_column} has one name only"
        raise InputError(f"{config.path or name}: need at least 2 tasks, got {len(tasks)}: {because}")
    refuse_shared_folders(config.path, tasks)
    kept = None if known is None else known_splits(documents, known)
    documents["split"] = _split(documents, config, kept)
    if kept is not None and not resumed:
        known_there = f"{plural(len(kept) - kept.count(None), 'document')} known there"
        places = " and ".join(map(str, known_from))
        notes.append(f"splits kept from {places}: {known_there}, {kept.count(None):,} new ones drawn")
    by_task = np.argsort(pd.Categorical(documents["task"], categories=tasks).codes, kind="stable")
    documents = documents.iloc[by_task].reset_index(drop=True)
    return Corpus(name, tuple(tasks), documents[COLUMNS], tuple(notes), make_record(documents, known))


def _split(documents: pd.DataFrame, config: DataConfig, kept: list[str | None] | None) -> list[str]:
    fractions = (config.train_fraction, config.validation_fraction, config.test_fraction)
    if config.split == "sample" and kept is None:
        return sample_documents(documents["task"], fractions, config.seed)
    return split_documents(documents["task"], documents["text"], fractions, config.seed, kept)


def _read_source(config: DataConfig) -> tuple[str, pd.DataFrame, list[str]]:
    """The corpus's name, all its documents with their times, and notes."""
    if config.kind == "synthetic":
        from bora_sweep.data import synthetic

        return "synthetic", synthetic.documents(config.synthetic).assign(time=0), []
    if config.kind == "talk_of_norway":
        documents, notes = talk_of_norway.documents(config)
        return "talk_of_norway", documents, notes
    path = Path(config.path or "")
    if config.kind == "hub":
        table, notes = read_hub(str(config.path), config.hub_config, config.hub_split, named_columns(config)), []
    elif path.is_dir():
        config = dataclasses.replace(config, id_column=config.id_column or "document_id")
        table, notes = read_folder(path, named_columns(config))
    else:
        table, notes = read_file(path, named_columns(config))
    name = path.name if config.kind == "hub" or path.is_dir() else Path(path.name.removesuffix(".gz")).stem
    return name, documents_of(table, config), notes
