"""`bora-sweep forget`."""

import argparse

from rich.markup import escape

from bora_sweep.commands.common import DONE, add_places, out
from bora_sweep.errors import plural

TEXT = """Take tasks out of a run or an export: their adapters, scores and documents' names.

Sums over tasks are made anew of those that stay; what cannot be made anew goes, and the command says so. The report is
written again. It asks nothing, and nothing brings the tasks back but a copy. Theta and the other adapters stay as they
are: they were fitted with the tasks' text too. The command ends with the one that fits anew without them.

Cut off, it is finished by the same command; until then the run cannot be resumed."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    text = "the folder of a run, also at s3://… or gs://…, or of an export"
    parser.add_argument("run", metavar="RUN", help=text)
    add_places(parser)
    text = "a task that leaves, by its name; repeat the option for several. Left out: finish what was cut off"
    parser.add_argument("--task", action="append", default=[], metavar="NAME", help=text)


def run(parsed: argparse.Namespace) -> int:
    """Take tasks out of a run or an export, and say what is still there of them."""
    from bora_sweep.forgetting import forget as take_out

    done = take_out(parsed.run, parsed.task, settings=parsed.settings)
    names = ", ".join(repr(name) for name in done.tasks)
    out.print(escape(f"{done.place}: {plural(len(done.tasks), 'task')} taken out: {names}"))
    for note in done.notes:
        out.print(escape(f"• {note}"))
    if done.refit is not None:
        out.print(escape(f"to fit anew without: {done.refit}"))
    return DONE
