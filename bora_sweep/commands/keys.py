"""`bora-sweep keys`."""

import argparse

from rich.markup import escape

from bora_sweep.commands.common import DONE, out
from bora_sweep.errors import InputError

TEXT = "Explain the keys of settings: type, bounds or choices, default, and where there is more."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    text = "a section, a key, or a word in the name or text of keys, such as train, tau or memory; default: all keys"
    parser.add_argument("word", nargs="?", metavar="SECTION|WORD", help=text)


def run(parsed: argparse.Namespace) -> int:
    """Explain keys."""
    from bora_sweep.config.help import all_keys, find_keys

    if parsed.word == "":
        raise InputError("keys: the word is empty; give a section, a key or a word, or leave it out")
    for key in all_keys() if parsed.word is None else find_keys(parsed.word):
        out.print(f"[bold]{escape(key.assignment)}[/]\n    {escape(key.kind)}; {key.page}\n    {escape(key.text)}")
    return DONE
