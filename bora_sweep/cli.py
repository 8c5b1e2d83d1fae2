"""The command line: `bora-sweep COMMAND`."""

import argparse
import errno
import io
import os
import sys
import textwrap
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from rich.markup import escape

from bora_sweep import __version__
from bora_sweep.commands import (
    add,
    common,
    completion,
    describe,
    export,
    fit,
    forget,
    generate,
    groups,
    init,
    keys,
    pack,
    plan,
    report,
    status,
    stop,
    sweep,
    try_value,
)
from bora_sweep.config.help import all_keys, describe_keys, describe_sections
from bora_sweep.errors import InputError, one_line, visible

EVERY_KEY = "keys with their defaults (text is taken literally, null is none, [a,b] is a list):"
COMMANDS = {
    "init": init, "plan": plan, "fit": fit, "sweep": sweep, "status": status, "stop": stop, "try": try_value,
    "report": report, "export": export, "generate": generate, "groups": groups, "add": add, "forget": forget,
    "pack": pack, "keys": keys, "completion": completion,
}  # fmt: skip
"""In the order of the help."""
WIDTH = 100
"""Columns of the help of keys."""


class _Once(argparse.Action):
    """Refuses an option that is given twice; argparse would silently drop the first value."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        seen = getattr(namespace, "seen", ())
        if option_string is not None and self.dest in seen:
            parser.error(f"{option_string} {values}: is given twice; keep one")
        namespace.seen = (*seen, self.dest)
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    """A parser whose options are `_Once`, and whose help tells of the keys of its command, if it has any."""

    def __init__(self, *, keys: Sequence[str] = (), sections: Sequence[str] = (), **options) -> None:
        super().__init__(**options)
        self.register("action", None, _Once)
        self.keys, self.sections = keys, sections
        if sections:
            self.add_argument("--help-all", action=_HelpAll, nargs=0, help="show every key of every section, and exit")

    def error(self, message: str) -> NoReturn:
        """One line, as of any other wrong input."""
        text = f"{self.prog}: {message}; see {self.prog} --help"
        common.err.print(f"[bold red]error:[/] {escape(visible(' '.join(text.split())))}")
        self.exit(common.WRONG_INPUT)

    def format_help(self) -> str:
        """The help; of keys those that most people set."""
        if self.sections and self.epilog is None:  # not before it is asked for: it reads the dataclasses' source
            self.epilog = _common_keys(self.keys, self.sections)
        return super().format_help()


class _HelpAll(argparse.Action):
    """Shows the help with every key."""

    def __call__(self, parser, *_, **__) -> None:
        parser.epilog = f"{EVERY_KEY}\n{describe_keys(parser.sections)}"
        parser.print_help()
        parser.exit()


def _common_keys(names: Sequence[str], sections: Sequence[str]) -> str:
    """The keys that most people set, and a line on each section."""
    chosen = {key.name: key for key in all_keys()}
    keys = [(chosen[name].assignment, chosen[name].summary) for name in names]
    return "\n".join([
        "the keys that most people set, with their defaults:", *_in_columns(keys),
        "", "sections and single keys (bora-sweep keys NAME shows theirs, --help-all all):",
        *_in_columns(describe_sections(sections)),
    ])  # fmt: skip


def _in_columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Names with texts beside them, in `WIDTH` columns."""
    width = max(len(name) for name, _ in rows) + 2
    return [
        line
        for name, text in rows
        for line in textwrap.wrap(
            text,
            WIDTH,
            initial_indent=f"  {name:<{width}}",
            subsequent_indent=" " * (width + 2),
            break_on_hyphens=False,
        )
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without τ shows \\u03c4 and does not fail
            stream.reconfigure(errors="backslashreplace")
    parsed = _parse(arguments)
    try:
        if sys.flags.optimize > 1:
            raise InputError(
                "PYTHONOPTIMIZE=2 (-OO): removes the docstrings that Transformers reads; set it to 1 at most"
            )
        return parsed.command(parsed)
    except InputError as error:
        common.err.print(f"[bold red]error:[/] {escape(str(error))}")
        return common.WRONG_INPUT
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        common.err.print(f"[bold red]failed:[/] {escape(one_line(error))}")
        return common.FAILED
    except KeyboardInterrupt:
        common.err.print("interrupted")
        return common.INTERRUPTED


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed arguments. PROMPT and settings may follow options, where argparse would not take them all."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    if rest and hasattr(parsed, "settings") and not any(argument.startswith("-") for argument in rest):
        parsed.settings, rest = [*parsed.settings, *rest], []
    if rest:
        parsed.asked.error(f"unrecognized arguments: {' '.join(rest)}")
    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="bora-sweep",
        description="Fine-tune one language model for many related tasks, and find how much they should share.",
        epilog="Start with: bora-sweep sweep   (uses an embedded corpus and model; a few minutes on two cores)",
    )
    parser.add_argument("--version", action="version", version=f"bora-sweep {__version__}")
    parser.set_defaults(parser=parser)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        _add(subparsers, name, command)
    data = subparsers.add_parser("data", help="Inspect a corpus.", description="Inspect a corpus.")
    _add(data.add_subparsers(metavar="COMMAND", required=True), "describe", describe)
    return parser


def _add(subparsers, name: str, command: ModuleType) -> None:
    """Add a command, whose help tells of the keys of its sections of the configuration."""
    added = subparsers.add_parser(
        name,
        help=command.TEXT.partition("\n")[0],
        description=command.TEXT,
        keys=getattr(command, "KEYS", ()),
        sections=getattr(command, "SECTIONS", ()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_options(added)
    added.set_defaults(command=command.run, asked=added)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
