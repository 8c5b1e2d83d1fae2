"""`bora-sweep add`."""

import argparse

from rich.markup import escape

from bora_sweep.commands.common import DONE, err, show_report, split_paths, with_resume_hint
from bora_sweep.config import Setting
from bora_sweep.errors import InputError

TEXT = "Fit adapters for tasks that a run has not seen, under its Theta and tau, by their documents alone."
SECTIONS = ["data", "train", "metrics", "metric", "tracking", "output"]
KEYS = [
    "data.task_column", "data.text_column", "data.split_column", "data.hold_out_from", "data.max_tasks",
    "train.learning_rate", "train.batch_size", "train.max_epochs", "metrics", "output",
]  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    text = (
        "the run's folder, a file or folder of the new tasks' documents, YAML files, and settings over the run's, such "
        "as output=runs/new"
    )
    parser.add_argument("settings", nargs="*", metavar="RUN FILE|key=value", help=text)
    text = "a finished trial of the run; default: best on validation"
    parser.add_argument("--trial", default="best", metavar="ID", help=text)
    text = "tasks that the run has too are fitted anew, from their adapters there"
    parser.add_argument("--refresh", action="store_true", help=text)
    text = "resume an add: that of output=…, else the newest in runs/; RUN and FILE are known"
    parser.add_argument("--resume", action="store_true", help=text)


def run(parsed: argparse.Namespace) -> int:
    """Fit adapters for tasks that a run has not seen, then write a report."""
    from bora_sweep.launch import claim_run, run_fit
    from bora_sweep.prepare_add import prepare_add
    from bora_sweep.report.added import write_added_report

    paths, given = split_paths(parsed.settings)
    if len(paths) > 2:
        raise InputError(f"add: {paths[2]!r} is one too many; give one run, one file, and settings such as output=…")
    settings: list[Setting] = [*given]
    if len(paths) == 2:
        also_named = next((setting for setting in given if setting.startswith("data.path=")), None)
        if also_named is not None:
            raise InputError(f"{also_named}: {paths[1]} names the documents too; drop one of the two")
        settings.append({"data": {"path": paths[1]}})
    run = paths[0] if paths else None
    prepared = prepare_add(run, settings, err, trial=parsed.trial, refresh=parsed.refresh, resume=parsed.resume)

    def work() -> int:
        with claim_run(prepared, "add"):
            row = run_fit(prepared, err)
            if row["stopped_by"] == "divergence":
                err.print(f"[yellow]ended at its best epoch:[/] {escape(row['error'])}")
            show_report(write_added_report(prepared.run))
        return DONE

    return with_resume_hint("add", prepared.run, work)
