"""The corpus of a run: documents with a task and a split, read, checked and filtered; notes say what is left out."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from bora_sweep.config import DataConfig
from bora_sweep.config.data import GROUP
from bora_sweep.data.choose import choose, leave_out_tasks
from bora_sweep.data.columns import Columns, choose_columns
from bora_sweep.data.documents import documents_of, prompt_of
from bora_sweep.data.groups import groups_of
from bora_sweep.data.known_documents import known_splits, make_record, read_documents, split_from, with_fingerprints
from bora_sweep.data.read import read_file, read_folder, read_hub
from bora_sweep.data.split import SPLITS, sample_documents, split_documents
from bora_sweep.data.table import check_columns
from bora_sweep.data.talk_of_norway import corpus as talk_of_norway
from bora_sweep.data.task_folders import refuse_shared_folders
from bora_sweep.errors import InputError, and_more, plural
from bora_sweep.runs.storage import Folder

Form = Literal["text", "prompt", "conversation"]
"""Running text; a prompt of the row's own, then what is scored; or turns, which a chat template writes."""
COLUMNS = ["task", "prompt", "text", "content", "document_id", "split", "floor_nll_nats"]


@dataclass(frozen=True)
class Corpus:
    """Documents of several tasks, split into train, validation and test."""

    name: str
    """Short: the stem of the file, or the name of the folder or data set."""
    tasks: tuple[str, ...]
    """In the order used everywhere: by name, or by time with `data.time_column`, or by `data.selection`."""
    documents: pd.DataFrame
    """Columns task, prompt (what documents that share a split have in common), text and content
    (`bora_sweep.data.documents`), document_id, split ("train", "validation", "test") and floor_nll_nats (NaN where
    unknown). Ordered by task, then as in the source."""
    notes: tuple[str, ...]
    """What was left out or cut, and how much of it."""
    groups: tuple[str, ...] = ()
    """The group of each task, in the order of `tasks`; empty where there are no groups."""
    record: pd.DataFrame = field(default_factory=pd.DataFrame)
    """What the run's file of documents holds (`bora_sweep.data.known_documents`)."""

    @property
    def form(self) -> Form:
        """What documents are."""
        content = self.documents["content"].iloc[0]
        return "text" if content is None else "conversation" if "messages" in content else "prompt"


def load_corpus(
    config: DataConfig, known_from: Sequence[Folder] | None = None, *, resumed: bool = False, separate: bool = False
) -> Corpus:
    """Read, check, filter and split the corpus that `config` names.

    Args:
        config: What is read, and how it is split.
        known_from: Folders of runs and exports whose documents stay in their splits (`record_folders`). Left out: that
            of `data.split_from` alone.
        resumed: Whether the record is the run's own, so that no note is needed.
        separate: Whether tasks stand alone, as in `add`: one is enough, each is split by itself, and it may be without
            documents to validate or to test on. Splits that the source gives are taken as they are.

    Raises:
        InputError: The source cannot be read, a row is malformed, a value is missing, fewer than two tasks are left, a
            task has too few documents, two tasks have the same folder name, a task has no group or several, a key
            belongs to another source, or a folder has no record of documents.
    """
    config.refuse_unused_keys()
    known_from = split_from(config) if known_from is None else known_from
    known = pd.concat(map(read_documents, known_from), ignore_index=True) if known_from else None
    name, documents, notes = _read_source(config)
    documents, more_notes = leave_out_tasks(documents, config, config.path or name, resumed=resumed)
    notes += more_notes
    documents = with_fingerprints(documents, config)  # before any text is cut
    documents, tasks, more_notes = choose(documents, config)
    notes += more_notes
    fewest = 1 if separate else 2
    if len(tasks) < fewest:
        one = (
            "each subfolder is a task, and only one holds .txt files"
            if config.kind == "file" and Path(config.path or "").is_dir()
            else f"data.task_column={config.task_column} has one name only"
        )
        because = "; ".join(notes) or one
        raise InputError(f"{config.path or name}: need at least {plural(fewest, 'task')}, got {len(tasks)}: {because}")
    refuse_shared_folders(config.path, tasks)
    groups, more_notes = groups_of(documents, tasks, config)
    notes += more_notes
    pairs = zip(documents["text"], documents["content"], strict=True)
    documents["prompt"] = [prompt_of(text, content, config) for text, content in pairs]
    kept = None if known is None else known_splits(documents, known)
    if not documents["split"].isna().to_numpy().all():
        documents["split"] = _given_splits(documents, config, separate=separate)
        if kept is not None and not resumed:
            notes += _note_on_trained(documents, kept, known_from, refuse=separate)
    else:
        documents["split"] = _drawn_splits(documents, config, kept, separate=separate)
        if kept is not None and not resumed:
            known_there = f"{plural(len(kept) - kept.count(None), 'document')} known there"
            places = " and ".join(map(str, known_from))
            notes.append(f"splits kept from {places}: {known_there}, {kept.count(None):,} new ones drawn")
    if not separate:
        _refuse_empty_splits(documents, config)
    notes += _note_on_small(documents, tasks)
    by_task = np.argsort(pd.Categorical(documents["task"], categories=tasks).codes, kind="stable")
    documents = documents.iloc[by_task].reset_index(drop=True)
    record = make_record(documents, known)
    return Corpus(name, tuple(tasks), documents[COLUMNS], tuple(notes), groups=groups, record=record)


def _drawn_splits(
    documents: pd.DataFrame, config: DataConfig, kept: list[str | None] | None, *, separate: bool
) -> list[str]:
    """The split of each document, drawn but for those that are `kept`; with `separate` for one task after the other."""
    if separate:
        splits = np.empty(len(documents), dtype=object)
        for rows_n in documents.reset_index(drop=True).groupby("task").indices.values():
            own = None if kept is None else [kept[n] for n in rows_n]
            splits[rows_n] = _drawn_splits(documents.iloc[rows_n], config, own, separate=False)
        return splits.tolist()
    if config.split == "sample" and kept is None:
        return sample_documents(documents["task"], config.fractions, config.seed)
    whole = config.small_tasks == "leave_out"
    return split_documents(
        documents["task"],
        documents["prompt"],
        config.fractions,
        config.seed,
        kept,
        whole=whole,
        hold_out_from=config.hold_out_from,
    )


def _given_splits(documents: pd.DataFrame, config: DataConfig, *, separate: bool) -> list[str]:
    """The split that the source gives each document; one that it does not give is drawn from those of training.

    With `separate` none is drawn: whether one is missing would depend on the other tasks.

    Raises:
        InputError: The source has no document to train on.
    """
    source, given = config.path, set(documents["split"].dropna())
    missing = [split for split in SPLITS[1:] if split not in given and not separate]
    is_open = documents["split"].isin(["train", None]).to_numpy()
    if not is_open.any():
        raise InputError(f"{source}: no document to train on; write 'train' in column {config.split_column!r}")
    splits = documents["split"].where(~is_open, "train").to_numpy(dtype=object, copy=True)
    if missing:
        wanted = {
            "train": config.train_fraction,
            "validation": config.validation_fraction,
            "test": config.test_fraction,
        }
        drawn = {split: wanted[split] if split in ("train", *missing) else 0.0 for split in SPLITS}
        fractions = [drawn[split] / sum(drawn.values()) for split in SPLITS]
        opened = documents.loc[is_open]
        splits[is_open] = split_documents(opened["task"], opened["prompt"], fractions, config.seed)
    without = sorted(set(documents["task"]) - set(documents["task"].to_numpy()[splits == "train"]))
    if without:
        raise InputError(
            f"{source}: task {without[0]!r} has no document to train on{and_more(without)}; leave it out, or give it "
            "one"
        )
    return splits.tolist()


def _note_on_trained(
    documents: pd.DataFrame, kept: list[str | None], known_from: Sequence[Folder], *, refuse: bool
) -> list[str]:
    """A note on documents to score that were trained on, where the source gives the splits; or a refusal."""
    pairs = zip(documents["split"], kept, strict=True)
    trained = documents[[split != "train" and before == "train" for split, before in pairs]]
    places = " and ".join(map(str, known_from))
    note = f"{plural(len(trained), 'document')} of validation and test trained on, says {places}"
    if refuse and len(trained):
        first = trained.iloc[0]
        raise InputError(
            f"{note}, such as {first['document_id']!r} of task {first['task']!r}, which tells nothing of new ones; "
            "make these of split 'train', or leave them out"
        )
    return [note] if len(trained) else []


def _refuse_empty_splits(documents: pd.DataFrame, config: DataConfig) -> None:
    """Refuse a corpus without a document to validate or to test on.

    Raises:
        InputError: There is no document to validate or to test on.
    """
    for split in SPLITS[1:]:
        if split not in set(documents["split"]):
            raise InputError(
                f"{config.path}: no document for {split}: no task has {SPLITS.index(split) + 1} documents with "
                "different texts or prompts; give more of some task, or where prompts say nothing of their own set "
                "data.keep_together=document"
            )


def _note_on_small(documents: pd.DataFrame, tasks: Sequence[str]) -> list[str]:
    """A note on tasks without a test document of their own."""
    small = len(set(tasks) - set(documents.loc[documents["split"] == "test", "task"]))
    without = f"{plural(small, 'task')} without a test document of {'its' if small == 1 else 'their'} own"
    return [f"{without}: trained on, with an adapter and no test score"] if small else []


def _read_source(config: DataConfig) -> tuple[str, pd.DataFrame, list[str]]:
    """The corpus's name, all its documents with their times, and notes."""
    if config.kind in ("synthetic", "talk_of_norway"):
        existing = ("task", "text", *([GROUP] if config.kind == "synthetic" and config.has_groups else []))
        choose_columns(f"data.source={config.kind}", existing, config)  # refuses templates with other columns
        plain = {"content": None, "split": None}
        if config.kind == "talk_of_norway":
            documents, notes = talk_of_norway.documents(config)
            return "talk_of_norway", documents.assign(**plain), notes
        from bora_sweep.data import synthetic

        return "synthetic", synthetic.documents(config.synthetic).assign(time=0, **plain), []
    path = Path(config.path or "")
    if config.kind == "file" and path.is_dir():
        config = dataclasses.replace(config, id_column=config.id_column or "document_id")
    columns_of: dict[object, Columns] = {}

    def choose_columns_of(source: object, existing: Sequence[str]) -> dict[str, str]:
        columns_of[source] = columns = choose_columns(source, existing, config)
        return columns.of

    if config.kind == "hub":
        table, notes = read_hub(str(config.path), config.hub_config, config.hub_split, choose_columns_of), []
    else:
        table, notes = (read_folder if path.is_dir() else read_file)(path, choose_columns_of)
    (columns,) = columns_of.values()
    documents = documents_of(config.path, table, columns, config)
    for split, other in (("validation", config.validation_path), ("test", config.test_path)):
        if other is not None:
            more, more_notes = _read_split(Path(other), split, columns, config)
            documents, notes = pd.concat([documents, more], ignore_index=True), notes + more_notes
    name = path.name if config.kind == "hub" or path.is_dir() else Path(path.name.removesuffix(".gz")).stem
    return name, documents, notes


def _read_split(path: Path, split: str, columns: Columns, config: DataConfig) -> tuple[pd.DataFrame, list[str]]:
    """The documents of a split's own file, which has the columns of the documents to train on."""

    def same_columns(source: object, existing: Sequence[str]) -> dict[str, str]:
        check_columns(f"data.{split}_path={source}", existing, columns.of)
        return columns.of

    if not path.is_file():
        raise InputError(f"data.{split}_path={path}: no such file")
    table, notes = read_file(path, same_columns)
    documents = documents_of(path, table, columns, config).assign(split=split)
    if config.id_column is None:
        documents["document_id"] = f"{split}/" + documents["document_id"]
    return documents, notes
