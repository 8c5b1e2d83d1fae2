"""`bora-sweep sweep`."""

import argparse

from rich.markup import escape

from bora_sweep.commands.common import (
    COMMON_KEYS,
    DONE,
    FAILED,
    RUN_KEYS,
    add_settings,
    err,
    show_report,
    split_paths,
    with_corpus,
    with_resume_hint,
)

TEXT = "Search for tau with many fits on Ray; write results as trials finish, then a report."
SECTIONS = [*RUN_KEYS, "search", "ray"]
KEYS = [*COMMON_KEYS, "search.num_trials"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_settings(parser, "search.num_trials=12")


def run(parsed: argparse.Namespace) -> int:
    """Search tau on Ray, then write a report."""
    from bora_sweep.launch import claim_run, run_prepared_sweep
    from bora_sweep.prepare import prepare_sweep
    from bora_sweep.report import write_report
    from bora_sweep.runs.results import trial_rows

    prepared = prepare_sweep(with_corpus(*split_paths(parsed.settings)), parsed.resume, err)

    def work() -> int:
        with claim_run(prepared, "sweep", err):
            is_complete = run_prepared_sweep(prepared, err)
            rows = trial_rows(prepared.run)
            failed = [row for row in rows if row["status"] == "failed"]
            for row in failed:
                err.print(f"[bold red]trial {row['trial_id']} failed:[/] {escape(row['error'] or 'no reason known')}")
            for row in rows:
                if row["stopped_by"] == "divergence":
                    err.print(f"[yellow]trial {row['trial_id']} ended at its best epoch:[/] {escape(row['error'])}")
            if any(row["status"] == "finished" and row["method"] == "map" for row in rows):
                show_report(write_report(prepared.run))
        if not is_complete:
            raise KeyboardInterrupt
        return FAILED if failed else DONE

    return with_resume_hint("sweep", prepared.run, work)
