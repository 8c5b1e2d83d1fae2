"""The command line: `bora-sweep COMMAND`."""

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence

from rich.markup import escape

from bora_sweep import __version__, commands
from bora_sweep.config.help import describe_keys
from bora_sweep.errors import InputError, one_line

KEYS = "keys, with their defaults (text is taken to the letter, null is none, a list is [a,b]):"


class _Once(argparse.Action):
    """An option whose second value is refused, where argparse would drop the first."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        given = getattr(namespace, "given", ())
        if option_string is not None and self.dest in given:
            parser.error(f"{option_string} {values}: is given twice; keep one")
        namespace.given = (*given, self.dest)
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.register("action", None, _Once)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of few letters shows τ as \\u03c4, and goes on
            stream.reconfigure(errors="backslashreplace")
    parsed = _parser().parse_args(arguments)
    try:
        if sys.flags.optimize > 1:
            raise InputError(
                "PYTHONOPTIMIZE=2 (-OO): Transformers reads docstrings, which it drops; set it to 1 at most"
            )
        return parsed.command(parsed)
    except InputError as error:
        commands.err.print(f"[bold red]error:[/] {escape(str(error))}")
        return commands.WRONG_INPUT
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        commands.err.print(f"[bold red]failed:[/] {escape(one_line(error))}")
        return commands.FAILED
    except KeyboardInterrupt:
        commands.err.print("interrupted")
        return commands.INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="bora-sweep",
        description="Fine-tune one language model for many related tasks, and find how much they should share.",
        epilog="Start with: bora-sweep sweep   (an embedded corpus and model, a few minutes on two cores)",
    )
    parser.add_argument("--version", action="version", version=f"bora-sweep {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str, sections: Sequence[str] = ()):
        keys = f"{KEYS}\n{describe_keys(sections)}" if sections else None
        added = subparsers.add_parser(
            name, help=text, description=text, epilog=keys, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        added.set_defaults(command=command)
        return added

    fitted = ("protocol", "data", "model", "lora", "prior", "train", "init_from", "method", "tracking", "output")
    _settings(add("fit", commands.fit, "One BoRA fit at prior.tau: checkpoint, adapters, scores.", fitted))
    swept = ("protocol", "data", "model", "lora", "prior", "train", "search", "ray", "tracking", "output")
    _settings(add("sweep", commands.sweep, "Search tau on Ray: results as trials finish, a report at the end.", swept))
    report = add("report", commands.report, "Tables, figures and a page of a run, also of one that is not finished.")
    report.add_argument("run", metavar="RUN", help="the run's folder")
    report.add_argument("--open", action="store_true", help="show the page, RUN/report/index.html, in a browser")
    report.add_argument("--against", choices=["paper"], help="also set the run beside the paper's results")
    status = add("status", commands.status, "How a run stands: trials, the best so far, the time left.")
    status.add_argument("run", metavar="RUN", help="the run's folder; also s3://… and gs://…")
    status.add_argument(
        "--watch", type=float, metavar="SECONDS", help="again and again, until no process works on the run"
    )
    _exporting(add("export", commands.export, "A trial's adapters as PEFT folders, one for each task and _global."))
    _generating(
        add("generate", commands.generate, "Text from tasks' adapters, beside that of _global and of the base model.")
    )
    data = add("data", commands.describe, "Look at a corpus.").add_subparsers(metavar="COMMAND", required=True)
    text = "Tasks, documents, tokens, splits; what is wrong with a corpus."
    described = data.add_parser(
        "describe", help=text, description=text, epilog=f"{KEYS}\n{describe_keys(['data'])}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    described.add_argument("settings", nargs="*", metavar="FILE|key=value", help="corpora, YAML files, settings")
    return parser


def _exporting(parser: argparse.ArgumentParser) -> None:
    _of_trial(parser)
    parser.add_argument("out", metavar="OUT", help="where folders, model cards and tasks.json go; new or empty")
    parser.add_argument("--task", nargs="+", action="extend", metavar="NAME", help="only these tasks; default: all")
    parser.add_argument("--merge", action="store_true", help="full models, the base with the adapter in its weights")


def _generating(parser: argparse.ArgumentParser) -> None:
    _of_trial(parser)
    parser.add_argument("prompt", metavar="PROMPT", help="how the text begins")
    parser.add_argument("--task", action="append", required=True, metavar="NAME", help="a task; repeat it for several")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="at most; default: 64")
    parser.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="0: the likeliest token each time; default: 1"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the draws, the same for each adapter")


def _of_trial(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument(
        "--trial", default="best", metavar="ID", help="a finished trial; best (default): the lowest on validation"
    )


def _settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="FILE.yaml|key=value",
        help="YAML files, merged left to right, then settings such as prior.tau=100",
    )
    parser.add_argument("--resume", action="store_true", help="go on with a run: output=RUN, else the newest in runs/")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
