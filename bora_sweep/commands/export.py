"""`bora-sweep export`."""

import argparse

from rich.markup import escape

from bora_sweep.commands.common import DONE, add_places, add_trial, out, refuse_place
from bora_sweep.errors import plural
from bora_sweep.runs.storage import folder_at

TEXT = "Write a trial's adapters as PEFT folders: one for each task, and _global for what they share."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_trial(parser)
    parser.add_argument("out", metavar="OUT", help="a new or empty folder for adapters, model cards and tasks.json")
    add_places(parser)
    parser.add_argument("--task", nargs="+", action="extend", metavar="NAME", help="only these tasks; default: all")
    form = parser.add_mutually_exclusive_group()
    text = "write full models: the base model with the adapter merged into its weights"
    form.add_argument("--merge", action="store_true", help=text)
    text = "write all tasks into one file, adapters.safetensors, with each task's row in tasks.json"
    form.add_argument("--bank", action="store_true", help=text)


def run(parsed: argparse.Namespace) -> int:
    """Write a trial's adapters as folders that PEFT loads."""
    from bora_sweep.runs.folder import config_of
    from bora_sweep.serve.bank import export_bank
    from bora_sweep.serve.export import export as write_folders

    chosen = parsed.run, parsed.out, parsed.trial, parsed.task
    refuse_place(parsed.task or ())
    if parsed.bank:
        tasks = export_bank(*chosen, settings=parsed.settings)
    else:
        tasks = write_folders(*chosen, merge=parsed.merge, settings=parsed.settings)
    what = "full models" if parsed.merge else "a bank of adapters" if parsed.bank else "adapters"
    out.print(f"{escape(parsed.out)}: {what} of _global and {plural(len(tasks), 'task')}, named in tasks.json")
    if (quantization := config_of(folder_at(parsed.run)).model.quantization) is not None:
        where = "merged into the base as it was before" if parsed.merge else "as the cards load the base"
        out.print(f"fitted and scored on a base in {quantization}, {where}")
    return DONE
