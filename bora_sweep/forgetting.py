"""Takes tasks out of a run, or out of an export: `bora-sweep forget`.

Nothing is written before the request is checked. Then `RUN/forgetting.json` says what is under way, until all else is
done. Each step can be repeated, so that the same command finishes what was cut off.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from bora_sweep.config import Config, Setting, with_values
from bora_sweep.config.yaml import dump_list
from bora_sweep.data.groups import is_groups_file, shorten_groups
from bora_sweep.data.known_documents import DOCUMENTS, read_documents, write_documents
from bora_sweep.errors import InputError, one_line, plural
from bora_sweep.model.peft_io import TASKS
from bora_sweep.report import write_report
from bora_sweep.runs.folder import ADD, FORGETTING, command_of, config_of, create_run
from bora_sweep.runs.places import INPUTS, MODEL, given_places, refuse_missing, with_places
from bora_sweep.runs.results import read_table, refuse_no_run, trial_rows
from bora_sweep.runs.run_lock import run_lock
from bora_sweep.runs.source import SOURCE, read_source, write_source
from bora_sweep.runs.storage import (
    Folder,
    exists,
    folder_at,
    list_files,
    read_bytes,
    remove,
    remove_folder,
    remove_parts,
    write_bytes,
)
from bora_sweep.serve.shorten_export import shorten_export, tasks_of_export
from bora_sweep.trials.add import START
from bora_sweep.trials.fingerprints import check_base_model, check_moved, read_fingerprints, write_fingerprints
from bora_sweep.trials.leaving import Leaving, shorten_adapters, take_out
from bora_sweep.trials.tracking import FOLDER as TRACKING

STUDY = "optuna"
"""Folder of what a sweep writes for optuna-dashboard; a resume makes it again."""
ERROR, REPORT = "error.txt", "report"
CARRIES = (
    "Theta and the other tasks' adapters were fitted with the text that left too, and may still carry something of it; "
    "Theta is near the mean of all adapters, so one that left can roughly be computed from Theta and the others"
)
ADDED = "no other adapter here was fitted with the text that left: an add holds Theta, and fits each task alone"


@dataclass(frozen=True)
class Forgotten:
    """What `forget` did, and what it could not do."""

    place: Folder
    """The run, or the export."""
    tasks: tuple[str, ...]
    """The tasks that have left it."""
    notes: tuple[str, ...]
    """What is gone with them, what is still there, and what could not be reached."""
    refit: str | None
    """The command that fits anew without them; None of an export, or where fewer than two tasks are left."""


@dataclass(frozen=True)
class _Request:
    """What is asked for, checked."""

    tasks: tuple[str, ...]
    own: tuple[str, ...]
    """Those that its fits had; others are in the record of documents alone, which came with `data.split_from`."""
    left: int
    """Tasks of the run that stay."""
    report: str | None
    """`report.md`, `paper.md` or `manager.md`, a page of the run's report; None without one."""


def forget(run: str | Folder, tasks: str | Sequence[str] = (), *, settings: Sequence[Setting] = ()) -> Forgotten:
    """Take tasks out of a run or an export: their adapters, their scores, and the names of their documents.

    Sums over tasks are made anew of those that stay. What cannot be made anew goes: learning curves, what an experiment
    tracker wrote into the run, and the checkpoints of fits that have not finished, which begin anew. The report is
    written again. The names of the tasks stay in `data.exclude_tasks`, so that a resume leaves them out.

    Theta and the other adapters stay as they are, though they were fitted with the tasks' text.

    Args:
        run: The folder of a run, also `s3://…` and `gs://…`, or of an export.
        tasks: The names of the tasks, or one name. None: finish what was cut off.
        settings: Where the run's base and documents are now, such as `data.path=/new/speeches.parquet`: the same ones,
            which are compared by their content. The run's configuration then names them.

    Returns:
        What was done, and the command that fits anew without the tasks.

    Raises:
        InputError: There is no such run or task, no other task would be left, another process works on the run, or a
            file in it is damaged. Before the first change, but for damaged files.
    """
    place, names = folder_at(run), (tasks,) if isinstance(tasks, str) else tuple(dict.fromkeys(tasks))
    places = given_places(settings, "forget")
    if exists(place / TASKS) and not exists(place / "config.yaml"):
        if places:
            raise InputError(f"{next(iter(places))}: {place} is an export, which reads nothing else; drop it")
        _check(place, "export", names, own=tasks_of_export(place), known=(), left_before=())
        notes = shorten_export(place, names)
        return Forgotten(place, names, (*notes, CARRIES), None)
    refuse_no_run(place)
    with run_lock(place, command_of(place) or "sweep"):  # as `status` names it: no command resumes with this one's name
        return _forget_in_run(place, names, places)


def _forget_in_run(run: Folder, names: tuple[str, ...], places: dict[str, str]) -> Forgotten:
    config = config_of(run) if exists(run / "config.yaml") else None
    asked = _request(run, names, config)
    if places:
        config = _moved(run, config, places)
    begun = {"tasks": asked.tasks, "own": asked.own, "report": asked.report}
    write_bytes(run / FORGETTING, json.dumps(begun).encode())
    record = read_documents(run) if exists(run / DOCUMENTS) else None
    notes = []
    if asked.own:
        data = {} if config is None else _changes(run, config, asked)
        ids = [] if record is None else record.loc[record["task"].isin(asked.own), "document_id"]
        rows = trial_rows(run)
        leaving = Leaving(frozenset(asked.own), frozenset(ids), data)
        for row in rows:
            take_out(run, row, leaving)
        if exists(run / SOURCE):
            shorten_adapters(run / START, leaving, holds_groups=True)
            source = read_source(run)
            write_source(run, replace(source, refreshed=[task for task in source.refreshed if task not in asked.own]))
        if config is not None:
            config = with_values(config, data=data, prior=leaving.prior_without(asdict(config.prior)))
        notes = _about_groups(run, shorten_groups(run, asked.own), config) + _notes(run, config, rows)
        _remove_what_sums_up(run)
    if record is not None:
        write_documents(run, record.loc[~record["task"].isin(asked.tasks)])
    if asked.own and (fingerprints := read_fingerprints(run)) is not None:
        write_fingerprints(run, fingerprints.without(asked.own))
    if config is not None and (asked.own or places):
        create_run(config, run)
    if asked.own:
        notes += _write_report_again(run, asked)  # it shows digests of the documents, which are those that stay by now
    remove(run / FORGETTING)
    return Forgotten(run, asked.tasks, tuple(notes), None if config is None else _refit(run, config, asked))


def _moved(run: Folder, config: Config | None, places: dict[str, str]) -> Config:
    """The configuration with its inputs where they are now, which must be the same."""
    key = next(iter(places))
    if config is None:
        raise InputError(f"{key}: {run} has no config.yaml that could name it; drop it")
    if exists(run / FORGETTING):
        raise InputError(f"{key}: tasks were being taken out of {run}, which was cut off; finish that without {key}")
    config = with_places(config, places)
    refuse_missing(run, config, places.keys())
    check_moved(run, config, places.keys())
    if MODEL in places:
        check_base_model(run, config.model, config.data)
    return config


def _remove_what_sums_up(run: Folder) -> None:
    """Remove the files that have sums over all tasks by epoch or by trial, or may name anything."""
    remove(run / ERROR)
    remove_folder(run / TRACKING)
    remove_folder(run / STUDY)
    for folder in (run, *list_files(run / "results", "*")):
        remove_parts(folder)


def _request(run: Folder, names: tuple[str, ...], config: Config | None) -> _Request:
    """What is asked for, with what was cut off.

    Raises:
        InputError: It cannot be done.
    """
    begun = {"tasks": [], "own": [], "report": None}
    begun |= json.loads(read_bytes(run / FORGETTING)) if exists(run / FORGETTING) else {}
    if packed := list_files(run / INPUTS, "data.*"):
        raise InputError(f"{packed[0]}: holds the documents, of which no task can be taken out; remove it, and repeat")
    own = _tasks_of_run(run)
    recorded = set(read_documents(run)["task"]) if exists(run / DOCUMENTS) else set()
    before = () if config is None else config.data.exclude_tasks
    tasks = tuple(dict.fromkeys([*begun["tasks"], *names]))
    _check(run, "run", tasks, own=own, known=recorded | {*begun["tasks"]}, left_before=before)
    pages = [page for page in ("paper.md", "report.md", "manager.md") if exists(run / REPORT / page)]
    return _Request(
        tasks=tasks,
        own=tuple(task for task in tasks if task in own or task in begun["own"]),
        left=len(own - {*tasks}),
        report=begun["report"] or next(iter(pages), None),
    )


def _check(
    place: Folder, kind: str, names: Sequence[str], *, own: set[str], known: Sequence[str] | set[str],
    left_before: Sequence[str],
) -> None:  # fmt: skip
    """Refuse names that are not there, and a request after which no task is left."""
    if not names:
        raise InputError(f"{place}: name the task that leaves the {kind} with --task NAME")
    for name in names:
        if name not in own and name not in known:
            if name in left_before:
                raise InputError(f"--task {name!r}: {place} has no such task, data.exclude_tasks leaves it out already")
            near = ", ".join(map(repr, get_close_matches(name, own, n=3, cutoff=0.0)))
            raise InputError(f"--task {name!r}: {place} has no such task; the nearest names are {near}")
    if not own - {*names}:
        raise InputError(
            f"{place}: no task would be left; remove the {kind} as a whole, by rm -r {shlex.quote(str(place))}"
        )


def _tasks_of_run(run: Folder) -> set[str]:
    """The tasks that the run was begun with, without those that have left."""
    if (fingerprints := read_fingerprints(run)) is not None:
        return {*fingerprints.tasks}
    tables = [read_table(run, "task_scores", row["trial_id"]) for row in trial_rows(run)]  # an older release's
    return {task for table in tables if table is not None for task in table["task"]}


def _changes(run: Folder, config: Config, asked: _Request) -> dict[str, Any]:
    """What changes in section `data` of the configuration, so that a resume finds the tasks that are left alone.

    Where the run has its data in its folder, as a program gave it, the tasks' rows leave that.
    """
    data, changes = config.data, {}
    if data.max_tasks is not None and asked.left < data.max_tasks <= asked.left + len(asked.own):
        changes["max_tasks"] = max(2, asked.left)  # another task would move up
    own = _own_data(run, config, asked)
    return changes | (own or {"exclude_tasks": list(dict.fromkeys([*data.exclude_tasks, *asked.own]))})


def _own_data(run: Folder, config: Config, asked: _Request) -> dict[str, str] | None:
    if not isinstance(run, Path) or config.data.path is None:
        return None
    from bora_sweep.in_memory import take_out_of_data

    return take_out_of_data(run, config.data, asked.own)


def _write_report_again(run: Folder, asked: _Request) -> list[str]:
    if asked.report is None:
        return []
    for file in list_files(run / REPORT, "*"):
        if file.is_dir():
            remove_folder(file)
        elif not is_groups_file(file):  # which another run may read, and is shortened by now
            remove(file)
    try:
        write_report(run, against_paper=asked.report == "paper.md")
    except InputError as error:
        return [f"the report is gone, and cannot be written again: {one_line(error)}"]
    return ["the report is written again"]


def _about_groups(run: Folder, shortened: Sequence[str], config: Config | None) -> list[str]:
    notes = [f"rows of files of groups are gone: {', '.join(shortened)}"] if shortened else []
    path = None if config is None else config.data.groups_path
    is_outside = path is not None and not (isinstance(run, Path) and Path(path).is_relative_to(run.absolute()))
    return [*notes, f"data.groups_path={path} is as it was"] if is_outside else notes


def _notes(run: Folder, config: Config | None, rows: Sequence[dict[str, Any]]) -> list[str]:
    """What is gone with the tasks, what is still there, and what could not be reached."""
    finished = [row for row in rows if row["status"] == "finished"]
    notes = []
    if open_trials := len(rows) - len(finished):
        notes.append(f"{plural(open_trials, 'trial')} that had not finished lost what was fitted, and begin anew")
    if finished:
        notes.append("learning curves are gone, as their sums over all tasks cannot be made anew")
    if any(row["reported_perplexity"] is not None for row in finished):
        notes.append("reported_perplexity of all tasks is gone, as it cannot be made anew")
    if any(row["tau_estimate"] is not None for row in finished):
        notes.append("tau_estimate is still there, and was estimated with that text too")
    if exists(run / TRACKING):
        notes.append("tracking/ is gone; what a tracker sent to a server of its own is still there")
    if config is None:
        return [*notes, CARRIES]
    if config.data.path is not None:
        notes.append(f"a source outside this folder is as it was; data.path={config.data.path}")
    if config.data.exclude_tasks:
        notes.append("the names stay in data.exclude_tasks, so that a resume leaves them out")
    if config.init_from is not None:
        notes.append(
            f"init_from={config.init_from} is as it was; where it was fitted with that text, forget it there too"
        )
    if not isinstance(run, Path):
        notes.append(f"to fit anew, first copy {run}/config.yaml here")
    others = (
        "exports, copies, files of groups that were written elsewhere, and runs whose data.split_from was this one are "
        "as they were"
    )
    return [*notes, others, CARRIES if config.method != ADD else ADDED]


def _refit(run: Folder, config: Config, asked: _Request) -> str | None:
    """The command that fits anew what is left, with each document in its split."""
    if asked.left < 2 or config.method == ADD:
        return None
    data = config.data
    place = str(run.absolute()) if isinstance(run, Path) else str(run)
    number = next(n for n in range(1, 10_000) if not exists(folder_at(f"{place}-refit{n}")))
    settings = [f"data.exclude_tasks={dump_list(data.exclude_tasks)}"] if data.exclude_tasks else []
    has_own_splits = data.split_column or data.validation_path or data.test_path
    settings += [] if has_own_splits or not exists(run / DOCUMENTS) else [f"data.split_from={place}"]
    settings.append(f"output={place}-refit{number}")
    file = f"{place}/config.yaml" if isinstance(run, Path) else "config.yaml"
    return shlex.join(["bora-sweep", command_of(run) or "sweep", file, *settings])
