"""`bora-sweep stop`."""

import argparse

from rich.markup import escape

from bora_sweep.commands.common import DONE, out

TEXT = """Stop a run that is under way in another terminal, or end one of its fits.

Without --trial all fits write checkpoints and the run ends, as by Ctrl-C; --resume goes on with it. With --trial that
fit ends with its best epoch so far, which a resume does not change, and the others go on."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("run", metavar="RUN", help="the run's folder, also at s3://… or gs://…")
    text = "a fit that runs, as `bora-sweep status RUN` names it; left out: the whole run"
    parser.add_argument("--trial", metavar="ID", help=text)


def run(parsed: argparse.Namespace) -> int:
    """Ask a run to stop, or one of its fits to end."""
    from bora_sweep.steering import stop

    stop(parsed.run, parsed.trial)
    if parsed.trial is None:
        out.print(escape(f"{parsed.run}: asked to stop after the steps under way, with checkpoints"))
    else:
        out.print(escape(f"trial {parsed.trial}: asked to end after the step under way, with its best epoch"))
    return DONE
