"""`bora-sweep add`."""

import argparse

from rich.markup import escape

from bora_sweep.commands.common import DONE, err, show_report, split_paths, with_corpus, with_resume_hint

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
    parser.add_argument("settings", nargs="*", default=[], metavar="RUN FILE|key=value", help=text)
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
    run, settings = paths[0] if paths else None, with_corpus(paths[1:], given)
    prepared = prepare_add(run, settings, err, trial=parsed.trial, refresh=parsed.refresh, resume=parsed.resume)

    def work() -> int:
        with claim_run(prepared, "add", err):
            row = run_fit(prepared, err)
            if row["stopped_by"] == "divergence":
                err.print(f"[yellow]ended at its best epoch:[/] {escape(row['error'])}")
            show_report(write_added_report(prepared.run))
        return DONE

    return with_resume_hint("add", prepared.run, work)
