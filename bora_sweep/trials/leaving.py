"""Takes tasks out of a trial: rows of its adapters and tables, and the sums in its row of `trials`.

Each step can be repeated: what has left already changes nothing. A trial's row is written last.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bora_sweep.errors import visible
from bora_sweep.runs.results import SCHEMAS, read_table, remove_table, write_table
from bora_sweep.runs.storage import (
    Folder,
    exists,
    list_files,
    read_bytes,
    remove,
    remove_folder,
    remove_parts,
    write_bytes,
)
from bora_sweep.train.checkpoint import ADAPTERS, drop_checkpoints, load_adapters, save_adapters
from bora_sweep.trials.path import UPWARD
from bora_sweep.trials.rows import sums_over_tasks

BY_TASK = ("document_scores", "predictions", "similarity", "task_scores")
"""The tables with rows of a task, or of two. `curves` has sums over all tasks, and `groups` was found with all."""
SO_FAR = (
    "best_epoch", "validation_nll_nats", "validation_num_tokens", "validation_perplexity", "train_tokens",
    "train_seconds", "non_padding_fraction", "notes",
)  # fmt: skip
"""Columns of `trials` that a fit fills on its way."""
NOTE = "fitted also on text of tasks that have left the run since"
REPORTED = "what its protocol reported of all tasks left with them"
UNNAMED = "left out, as it may name a task that has left the run"


@dataclass(frozen=True)
class Leaving:
    """Tasks that leave a run."""

    tasks: frozenset[str]
    document_ids: frozenset[str] = frozenset()
    data: Mapping[str, Any] = field(default_factory=dict)
    """Changes of section `data` of the configuration, without which a resume would look for them."""

    def prior_without(self, prior: Mapping[str, Any]) -> dict[str, Any]:
        """Section `prior` of a configuration without the tasks' own tau (`prior.groups=task`)."""
        if prior.get("groups") != "task":
            return dict(prior)
        scales = {task: scale for task, scale in prior["group_scales"].items() if task not in self.tasks}
        return {**prior, "group_scales": scales}

    def may_be_named_in(self, text: str) -> bool:
        """Whether a message may name one of the tasks, or a document of theirs. A message that was cut off may."""
        if text.endswith("…"):
            return True
        names = {form for task in self.tasks for form in _written(task)}
        is_task = any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) for name in names)
        has_quotes = "'" in text or '"' in text
        return is_task or (has_quotes and any(repr(name) in text for name in self.document_ids))


def _written(name: str) -> set[str]:
    """How a message may have a name: as it is, on one line, or with escapes."""
    return {" ".join(form.split()) for form in (name, repr(name)[1:-1], visible(name))} | {name}


def take_out(run: Folder, row: dict[str, Any], leaving: Leaving) -> None:
    """Take tasks out of a trial.

    A finished trial keeps Theta, the other tasks' rows, and what it cost. Its learning curve goes: it has sums over all
    tasks by epoch, and the part of one task in them is not known. What a protocol reported of all tasks, and the share
    of tokens that was cut, become null for the same reason. A trial that has not finished loses its checkpoints, and
    begins anew: its moments and its place in an epoch are of all tasks' documents.

    Args:
        run: The run's folder.
        row: The trial's row of `trials`.
        leaving: The tasks.

    Raises:
        InputError: A file of the trial is damaged.
    """
    trial_id, is_finished = row["trial_id"], row["status"] == "finished"
    folder = run / "trials" / trial_id
    remove_parts(folder)
    drop_checkpoints(folder)
    for folds in list_files(folder, "unseen-*"):  # fits that left tasks out, and what those scored
        remove_folder(folds)
    if is_finished:
        shorten_adapters(folder, leaving, holds_groups=row["method"] == "add")
        for table in BY_TASK:
            _shorten_table(run, table, trial_id, leaving)
        for table in ("curves", "groups"):
            remove_table(run, table, trial_id)
        _forget_other_fit(folder)
    else:
        remove(folder / ADAPTERS)
        for table in SCHEMAS.keys() - {"trials"}:
            remove_table(run, table, trial_id)
    changed = row | _messages(row, leaving) | {"config_json": _config_without(row["config_json"], leaving)}
    changed |= _sums(run, changed) if is_finished else dict.fromkeys(SO_FAR) | {"epochs": 0}
    if changed != row:
        write_table(run, "trials", trial_id, [changed])


def shorten_adapters(folder: Folder, leaving: Leaving, *, holds_groups: bool = False) -> None:
    """Remove the tasks' rows and names, and groups that have no task left: such a Theta_g was fitted to those alone.

    Args:
        folder: Of the adapters.
        leaving: The tasks.
        holds_groups: Whether Theta_g is that of another run, as in a run of `add`, so that every group stays.
    """
    if not exists(folder / ADAPTERS):
        return
    tensors, about = load_adapters(folder)
    kept = [row for row, task in enumerate(about["tasks"]) if task not in leaving.tasks]
    if len(kept) == len(about["tasks"]):
        return
    group_of = {task: group for task, group in about.get("group_of", {}).items() if task not in leaving.tasks}
    named = about.get("groups", ())
    groups = [row for row, group in enumerate(named) if holds_groups or group in group_of.values()]
    rows_of = {"theta_KP": kept, "std_KP": kept, "theta_GP": groups}
    shorter = {name: tensor[rows_of[name]] if name in rows_of else tensor for name, tensor in tensors.items()}
    names = {"tasks": [about["tasks"][row] for row in kept]}
    if "group_of" in about:
        names |= {"group_of": group_of, "groups": [named[row] for row in groups]}
    save_adapters(folder, shorter, {**about, **names})


def _shorten_table(run: Folder, table: str, trial_id: str, leaving: Leaving) -> None:
    rows = read_table(run, table, trial_id)
    if rows is None:
        return
    named = [name for name in ("task", "other") if name in rows]
    kept = rows.loc[~rows[named].isin([*leaving.tasks]).any(axis=1)]
    if kept.empty:
        remove_table(run, table, trial_id)
    elif len(kept) < len(rows):
        write_table(run, table, trial_id, kept)


def _forget_other_fit(folder: Folder) -> None:
    """Remove the nats of a path's second fit of a value; the file itself says that the value had one."""
    if exists(folder / UPWARD):
        about = json.loads(read_bytes(folder / UPWARD))
        if about["validation_nll_nats"] is not None:
            write_bytes(folder / UPWARD, json.dumps({**about, "validation_nll_nats": None}).encode())


def _messages(row: dict[str, Any], leaving: Leaving) -> dict[str, Any]:
    """`error` and `notes` without what may name the tasks."""

    def unnamed(text: str | None) -> str | None:
        return UNNAMED if text and text != UNNAMED and leaving.may_be_named_in(text) else text

    before = (row["notes"] or "").split("; ")
    own = {note for note in before if note in (UNNAMED, NOTE, REPORTED)}
    if row["status"] == "finished" and row["method"] != "zero_shot":
        own |= {NOTE} if row["reported_perplexity"] is None else {NOTE, REPORTED}
    others = unnamed("; ".join(note for note in before if note not in own))
    notes = [others, *(note for note in (UNNAMED, NOTE, REPORTED) if note in own and note != others)]
    return {"error": unnamed(row["error"]), "notes": "; ".join(filter(None, notes)) or None}


def _config_without(text: str | None, leaving: Leaving) -> str | None:
    """The configuration in a row without the tasks; as JSON, since an older release may have written it."""
    if text is None:
        return None
    config = json.loads(text)
    changed = {"data": {**config["data"], **leaving.data}, "prior": leaving.prior_without(config["prior"])}
    return json.dumps({**config, **changed}, ensure_ascii=False)


def _sums(run: Folder, row: dict[str, Any]) -> dict[str, Any]:
    """The columns of a finished trial's row that are of all its tasks."""
    tasks, scored = (read_table(run, table, row["trial_id"]) for table in ("task_scores", "predictions"))
    if tasks is None:
        tasks = SCHEMAS["task_scores"].empty_table().to_pandas()
    splits = [split for split in ("validation", "test") if row[f"{split}_num_tokens"] is not None]
    return {
        **sums_over_tasks(splits, tasks, scored),
        "reported_perplexity": None,
        "reported_as": None,
        "cut_token_fraction": None,
    }
