"""The command line: `bora-sweep COMMAND`."""

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from rich.markup import escape

from bora_sweep import __version__
from bora_sweep.commands import (
    add,
    common,
    describe,
    export,
    fit,
    forget,
    generate,
    plan,
    report,
    status,
    stop,
    sweep,
    try_value,
)
from bora_sweep.config.help import describe_keys
from bora_sweep.errors import InputError, one_line

KEYS = "keys with their defaults (text is taken literally, null is none, [a,b] is a list):"
COMMANDS = {
    "fit": fit, "sweep": sweep, "add": add, "plan": plan, "report": report, "status": status, "export": export,
    "generate": generate, "forget": forget, "stop": stop, "try": try_value,
}  # fmt: skip
"""In the order of the help."""


class _Once(argparse.Action):
    """Refuses an option that is given twice; argparse would silently drop the first value."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        seen = getattr(namespace, "seen", ())
        if option_string is not None and self.dest in seen:
            parser.error(f"{option_string} {values}: is given twice; keep one")
        namespace.seen = (*seen, self.dest)
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    """A parser whose options are `_Once`."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.register("action", None, _Once)


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
    if len(rest) == 1 and not rest[0].startswith("-") and getattr(parsed, "prompt", "") is None:
        parsed.prompt = rest.pop()
    if rest and hasattr(parsed, "settings") and not any(argument.startswith("-") for argument in rest):
        parsed.settings, rest = [*parsed.settings, *rest], []
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="bora-sweep",
        description="Fine-tune one language model for many related tasks, and find how much they should share.",
        epilog="Start with: bora-sweep sweep   (uses an embedded corpus and model; a few minutes on two cores)",
    )
    parser.add_argument("--version", action="version", version=f"bora-sweep {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        _add(subparsers, name, command)
    data = subparsers.add_parser("data", help="Inspect a corpus.", description="Inspect a corpus.")
    _add(data.add_subparsers(metavar="COMMAND", required=True), "describe", describe)
    return parser


def _add(subparsers, name: str, command: ModuleType) -> None:
    """Add a command, whose help lists the keys of its sections of the configuration."""
    sections = getattr(command, "SECTIONS", None)
    added = subparsers.add_parser(
        name,
        help=command.TEXT.partition("\n")[0],
        description=command.TEXT,
        epilog=f"{KEYS}\n{describe_keys(sections)}" if sections else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_options(added)
    added.set_defaults(command=command.run)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
