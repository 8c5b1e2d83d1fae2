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
from difflib import get_close_matches

from rich.console import Console
from rich.markup import escape

from bora_sweep.config import Setting, is_setting, load_config
from bora_sweep.config.paths import expand_home
from bora_sweep.console import LoggedConsole
from bora_sweep.errors import InputError, one_line, redact
from bora_sweep.runs.places import is_place
from bora_sweep.runs.storage import Folder, StorageFullError, exists, read_bytes, write_bytes

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
PAGE = "index.html"
ANSWER = "**τ = "
"""What the paragraph of a report begins with that says which tau is best."""
RUN_KEYS = ("protocol", "data", "model", "lora", "prior", "train", "metrics", "metric", "tracking", "output")
"""Sections and keys of the settings of a fit, for the help of its command."""
COMMON_KEYS = (
    "data.path", "data.task_column", "model.name", "model.max_tokens", "lora.rank", "train.learning_rate",
    "train.micro_batch_size", "metrics", "output",
)  # fmt: skip
"""Those that most people set."""

if os.environ.get("COLUMNS") == "0":  # some programs set it without a terminal, and rich would print nothing
    del os.environ["COLUMNS"]
err = LoggedConsole(stderr=True, highlight=False, soft_wrap=True)
out = Console(highlight=False, soft_wrap=True)


def add_settings(parser: argparse.ArgumentParser, example: str) -> None:
    """The arguments of a command that begins a run: settings, and `--resume`."""
    text = f"a file or folder of documents, YAML files, merged left to right, and settings such as {example}"
    parser.add_argument("settings", nargs="*", default=[], metavar="FILE|FILE.yaml|key=value", help=text)
    text = "resume a run: that of output=RUN, else the newest in runs/"
    parser.add_argument("--resume", action="store_true", help=text)


def add_trial(parser: argparse.ArgumentParser) -> None:
    """The arguments of a command that uses a trial: RUN, and `--trial`."""
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    text = "a finished trial; default: best on validation"
    parser.add_argument("--trial", default="best", metavar="ID", help=text)


def add_places(parser: argparse.ArgumentParser) -> None:
    """The settings of a command that uses what a run has: where the run's inputs are now."""
    text = "where the base and the documents are now, if they have moved: model.name=…, data.path=…"
    parser.add_argument("settings", nargs="*", default=[], metavar="KEY=PLACE", help=text)


def refuse_place(tasks: Sequence[str]) -> None:
    """Refuse a setting that an option of several names has taken for a name.

    Raises:
        InputError: There is one.
    """
    if (place := next(filter(is_place, tasks), None)) is not None:
        raise InputError(f"--task {place}: is no task; write {place} before --task")


def split_paths(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Paths of corpora or runs among arguments, and the rest: YAML files and settings."""
    paths = [a for a in arguments if not is_setting(a) and not a.endswith((".yaml", ".yml"))]
    return paths, [a for a in arguments if a not in paths]


def with_corpus(paths: Sequence[str], settings: Sequence[str]) -> list[Setting]:
    """The settings, among them `data.path` of the path, if there is one.

    Raises:
        InputError: There are several paths, `data.path` is given too, or no such file or folder exists.
    """
    if len(paths) > 1:
        raise InputError(f"{paths[1]}: {paths[0]} names the documents already; give one file or folder")
    if not paths:
        return [*settings]
    also_named = next((setting for setting in settings if setting.startswith("data.path=")), None)
    if also_named is not None:
        raise InputError(f"{also_named}: {paths[0]} names the documents too; drop one of the two")
    is_here = "://" in paths[0] or os.path.exists(expand_home(paths[0]))  # an address is refused by the settings
    if not is_here and load_config(settings).data.source in (None, "file"):
        raise InputError(f"{paths[0]}: no such file or folder; {_meant(paths[0])}")
    return [*settings, {"data": {"path": paths[0]}}]


def _meant(word: str) -> str:
    """What may have been meant by a word that is no path."""
    from bora_sweep.config.help import all_keys

    near = get_close_matches(word, [key.name for key in all_keys()], n=1, cutoff=0.7)
    if near:
        return f"a setting has a value, as in {near[0]}=…"
    return "give a file or folder of documents, a .yaml file, or a setting such as prior.tau=100"


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
