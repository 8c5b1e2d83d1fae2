"""`bora-sweep pack`."""

import argparse

from rich.markup import escape

from bora_sweep.commands.common import DONE, out

TEXT = """Write a run into one tar file for somebody else: results, the best adapters, configuration, report.

It has names of tasks, ids of documents and digests of their texts, but no text, unless --with-data is given. Adapters
may carry something of the text that they were fitted on. Unpacked by tar -xf, the run works with report, status,
export, generate and add; model.name=… says where the base is there."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("file", metavar="FILE.tar", help="a new file")
    text = "also the adapters and checkpoints of all other trials, which a resume needs"
    parser.add_argument("--all-trials", action="store_true", help=text)
    text = "also the documents, the texts in predictions, and errors of trials, which may quote documents"
    parser.add_argument("--with-data", action="store_true", help=text)
    text = "also the base model, unless it is one of the Hugging Face hub"
    parser.add_argument("--with-base", action="store_true", help=text)


def run(parsed: argparse.Namespace) -> int:
    """Write a run into a tar file, and say what it holds and what was left out."""
    from bora_sweep.packing import pack

    packed = pack(
        parsed.run, parsed.file, all_trials=parsed.all_trials, with_data=parsed.with_data, with_base=parsed.with_base
    )
    out.print(escape(f"{packed.file}: {packed.num_bytes / 2**20:,.1f} MiB, with"))
    for what in packed.holds:
        out.print(escape(f"• {what}"))
    if packed.left_out:
        out.print("left out:")
    for what in packed.left_out:
        out.print(escape(f"• {what}"))
    return DONE
