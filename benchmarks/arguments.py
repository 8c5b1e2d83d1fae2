"""The command line of a benchmark: `--help` says what it measures, and wrong input is one line."""

import argparse
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from bora_sweep.errors import InputError


def start(
    work: Callable[..., Any],
    about: str | None,
    metavar: str | None = None,
    choices: Collection[str] | None = None,
    kind: type = str,
) -> None:
    """Call `work`: with nothing, or with the list of what was given where `metavar` names what may be.

    Args:
        work: The benchmark.
        about: Its module's docstring.
        metavar: What each argument is.
        choices: What each may be; None: anything.
        kind: What each is read as.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    if metavar is not None:
        parser.add_argument("given", nargs="*", metavar=metavar, type=kind)
    asked = parser.parse_args()
    if choices is not None and (unknown := set(asked.given) - set(choices)):
        parser.error(f"{metavar} {', '.join(sorted(unknown))}: choose from {', '.join(choices)}")
    with refusing(parser):
        work(*([] if metavar is None else [asked.given]))


@contextmanager
def refusing(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Within, wrong input ends the benchmark with a line and exit code 2."""
    try:
        yield
    except InputError as error:
        parser.exit(2, f"error: {error}\n")
