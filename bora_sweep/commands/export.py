"""`bora-sweep export`."""

import argparse

from rich.markup import escape

from bora_sweep.commands.common import DONE, add_places, add_trial, out, refuse_place
from bora_sweep.errors import InputError, plural
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
    text = "with --merge: type of the full models' weights; default: base, that of the base's files"
    parser.add_argument("--dtype", choices=["base", "float32", "bfloat16"], default="base", help=text)
    text = "also upload OUT to the Hugging Face hub, as a new private repository; the login is that of `hf auth login`"
    parser.add_argument("--push", metavar="OWNER/NAME", help=text)
    parser.add_argument("--public", action="store_true", help="with --push: a repository that all can see")


def run(parsed: argparse.Namespace) -> int:
    """Write a trial's adapters as folders that PEFT loads."""
    from bora_sweep.runs.folder import config_of
    from bora_sweep.serve.bank import export_bank
    from bora_sweep.serve.export import write_export

    refuse_place(parsed.task or ())
    common = {"trial": parsed.trial, "tasks": parsed.task, "settings": parsed.settings}
    common |= {"push": parsed.push, "public": parsed.public}
    if parsed.bank:
        if parsed.dtype != "base":
            raise InputError(f"--dtype {parsed.dtype}: a bank is in float32; drop one of the two")
        tasks, notes = export_bank(parsed.run, parsed.out, **common), []
    else:
        exported = write_export(parsed.run, parsed.out, merge=parsed.merge, dtype=parsed.dtype, **common)
        tasks, notes = exported.folder_of, exported.notes
    what = "full models" if parsed.merge else "a bank of adapters" if parsed.bank else "adapters"
    out.print(f"{escape(parsed.out)}: {what} of _global and {plural(len(tasks), 'task')}, named in tasks.json")
    for note in notes:
        out.print(f"[yellow]{escape(note)}[/]")
    if parsed.push is not None:
        out.print(f"uploaded to {escape(parsed.push)}, {'which all can see' if parsed.public else 'private'}")
    if (quantization := config_of(folder_at(parsed.run)).model.quantization) is not None:
        where = "merged into the base as it was before" if parsed.merge else "as the cards load the base"
        out.print(f"fitted and scored on a base in {quantization}, {where}")
    return DONE
