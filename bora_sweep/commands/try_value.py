"""`bora-sweep try`."""

import argparse

from rich.markup import escape

from bora_sweep.commands.common import DONE, out
from bora_sweep.errors import InputError

TEXT = """Fit a value of tau next, in a sweep that is under way in another terminal.

The fits that run go on. The value comes before any other that waits, beside the values that the search chooses, and the
search learns from it. A resume has it in the same place."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("run", metavar="RUN", help="the sweep's folder, also at s3://… or gs://…")
    parser.add_argument("value", metavar="tau=VALUE", help="a value above 0, such as tau=300")


def run(parsed: argparse.Namespace) -> int:
    """Ask a sweep to fit a value next."""
    from bora_sweep.steering import try_tau

    name, _, value = parsed.value.partition("=")
    try:
        tau = float(value)
    except ValueError:
        tau = None
    if name != "tau" or tau is None:
        raise InputError(f"{parsed.value}: need a number as in tau=300")
    try_tau(parsed.run, tau)
    out.print(escape(f"tau = {tau:g}: queued as the next value of {parsed.run}"))
    return DONE
