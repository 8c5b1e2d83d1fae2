"""`bora-sweep status`."""

import argparse
import time

from bora_sweep.commands.common import DONE, out
from bora_sweep.errors import InputError
from bora_sweep.runs.storage import folder_at

TEXT = "Show the progress of a run: its trials, the best so far, the time left."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("run", metavar="RUN", help="the run's folder, also at s3://… or gs://…")
    text = "show it again after so many seconds, until no process works on the run"
    parser.add_argument("--watch", type=float, metavar="SECONDS", help=text)


def run(parsed: argparse.Namespace) -> int:
    """Show the progress of a run; with `--watch` repeatedly, until no process works on it."""
    from bora_sweep.tune.status import render, run_status

    if parsed.watch is not None and not 0 < parsed.watch < float("inf"):
        raise InputError(f"--watch {parsed.watch:g}: need a finite number of seconds above 0")
    run = folder_at(parsed.run)
    while True:
        stands = run_status(run)
        if parsed.watch is not None:
            out.clear()  # has an effect in a terminal only
        out.print(render(stands))
        if parsed.watch is None or not stands.is_driven:
            return DONE
        time.sleep(parsed.watch)
