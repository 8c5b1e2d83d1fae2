"""What commands share: exit codes, consoles, options of several commands, and how a run's end is told.

Exit codes. 0: done. 1: the run failed, and what finished is kept; or what is planned does not fit. 2: the input is
wrong, with one message. 130: interrupted.
"""

import argparse
import os
import shlex
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress

from rich.console import Console
from rich.markup import escape

from bora_sweep.config import is_setting
from bora_sweep.errors import InputError, one_line, redact
from bora_sweep.runs.storage import Folder, StorageFullError, exists, read_bytes, write_bytes

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
PAGE = "index.html"
ANSWER = "**τ = "
"""What the paragraph of a report begins with that says which tau is best."""
RUN_KEYS = ("protocol", "data", "model", "lora", "prior", "train", "metrics", "metric", "tracking", "output")
"""Sections and keys of the settings of a fit, for the help of its command."""

if os.environ.get("COLUMNS") == "0":  # some programs set it without a terminal, and rich would print nothing
    del os.environ["COLUMNS"]
err = Console(stderr=True, highlight=False, soft_wrap=True)
out = Console(highlight=False, soft_wrap=True)


def add_settings(parser: argparse.ArgumentParser, example: str) -> None:
    """The arguments of a command that begins a run: settings, and `--resume`."""
    text = f"YAML files, merged left to right, then settings such as {example}"
    parser.add_argument("settings", nargs="*", metavar="FILE.yaml|key=value", help=text)
    text = "resume a run: that of output=RUN, else the newest in runs/"
    parser.add_argument("--resume", action="store_true", help=text)


def add_trial(parser: argparse.ArgumentParser) -> None:
    """The arguments of a command that uses a trial: RUN, and `--trial`."""
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    text = "a finished trial; default: best on validation"
    parser.add_argument("--trial", default="best", metavar="ID", help=text)


def split_paths(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Paths among arguments, and the rest: YAML files and settings."""
    paths = [a for a in arguments if not is_setting(a) and not a.endswith((".yaml", ".yml"))]
    return paths, [a for a in arguments if a not in paths]


def with_resume_hint(command: str, run: Folder, work: Callable[[], int]) -> int:
    """The exit code of `work`. If it is interrupted or fails, print the command that resumes the run."""
    hint = escape(f"resume with: bora-sweep {command} --resume output={shlex.quote(str(run))}")
    try:
        return work()
    except KeyboardInterrupt:
        err.print(f"interrupted; {hint}")
        return INTERRUPTED
    except InputError:
        raise
    except Exception as error:
        with suppress(StorageFullError, OSError):
            write_bytes(run / "error.txt", redact(traceback.format_exc()).encode())
        err.print(f"[bold red]failed:[/] {escape(one_line(error))} (details in {escape(str(run))}/error.txt); {hint}")
        return FAILED


def show_report(path: Folder) -> None:
    """Print what the report begins with, and where the rest is.

    That is the first paragraph after the title, which recommends; and the answer with tau, which an `add` has not.
    """
    first, *others = [text for text in read_bytes(path).decode().split("\n\n") if text and not text.startswith("#")]
    for text in [first, *(other for other in others if other.startswith(ANSWER))][:2]:
        out.print(escape(text))
    out.print(escape(f"report: {path}"))
    if exists(path.parent / PAGE):  # an add has none
        out.print(escape(f"page: {path.parent / PAGE}"))
