"""`bora-sweep init`."""

import argparse
import shlex
from pathlib import Path

from rich.markup import escape

from bora_sweep.commands.common import COMMON_KEYS, DONE, RUN_KEYS, out, split_paths, with_corpus
from bora_sweep.errors import InputError, visible

TEXT = """Write a first configuration for your documents, with the reason for each value.

It looks at the file (columns, tasks, splits, lengths), at the model, if model.name=… names one, and at this machine,
and says what a sweep would take. Nothing is fitted."""
SECTIONS = [*RUN_KEYS, "search", "ray"]
KEYS = [*COMMON_KEYS, "data.text_column"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    text = "a file or folder of documents, and settings that are kept, such as model.name=facebook/opt-350m"
    parser.add_argument("settings", nargs="*", default=[], metavar="FILE|key=value", help=text)
    text = "the file to write, which must not exist; default: bora_sweep.yaml"
    parser.add_argument("--output", default="bora_sweep.yaml", metavar="FILE.yaml", help=text)


def run(parsed: argparse.Namespace) -> int:
    """Write a first configuration, and show what it was made by."""
    path = Path(parsed.output)
    _check_free(path)
    from bora_sweep.first_run import look
    from bora_sweep.runs.storage import write_bytes

    made = look(with_corpus(*split_paths(parsed.settings)))
    for line in made.found:
        out.print(f"• {escape(visible(line))}")
    _check_free(path)
    write_bytes(path, made.to_yaml(shlex.join(["bora-sweep", "init", *parsed.settings])).encode())
    for line in made.takes:
        out.print(f"• {escape(visible(line))}")
    out.print(f"{escape(str(path))}: read it, then run bora-sweep sweep {escape(shlex.quote(str(path)))}")
    return DONE


def _check_free(path: Path) -> None:
    if path.suffix not in (".yaml", ".yml"):
        raise InputError(f"--output {path}: need a name that ends in .yaml")
    if path.exists():
        raise InputError(f"--output {path}: exists, and is not overwritten; give another --output")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--output {path}: no such folder; make it first")
