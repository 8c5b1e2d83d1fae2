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

KEYS = "keys with their defaults (text is taken literally, null is none, [a,b] is a list):"
RUN_KEYS = ("protocol", "data", "model", "lora", "prior", "train", "metrics", "metric", "tracking", "output")
ADD_KEYS = ("tracking", "output")
FIT_TEXT = "Fit all tasks at one value of prior.tau; write adapters and scores."
SWEEP_TEXT = "Search for tau with many fits on Ray; write results as trials finish, then a report."
ADD_TEXT = "Fit adapters for tasks that a run has not seen, under its Theta and tau, by their documents alone."
PLAN_TEXT = "Reckon whether a fit fits on a card, before one is rented. No weights and no GPU are needed."
REPORT_TEXT = "Write tables, figures and a page of a run, finished or not."
STATUS_TEXT = "Show the progress of a run: its trials, the best so far, the time left."
EXPORT_TEXT = "Write a trial's adapters as PEFT folders: one for each task, and _global for what they share."
GENERATE_TEXT = "Generate text from adapters of tasks, beside that of _global and of the base model."
FORGET_TEXT = """Take tasks out of a run or an export: their adapters, scores and documents' names.

Sums over tasks are made anew of those that stay; what cannot be made anew goes, and the command says so. The report is
written again. It asks nothing, and nothing brings the tasks back but a copy. Theta and the other adapters stay as they
are: they were fitted with the tasks' text too. The command ends with the one that fits anew without them.

Cut off, it is finished by the same command; until then the run cannot be resumed."""
DESCRIBE_TEXT = "Show the tasks, documents, tokens and splits of a corpus, and what may be wrong with it."


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
    fit = _add(subparsers, "fit", commands.fit, FIT_TEXT, [*RUN_KEYS, "init_from", "method"])
    sweep = _add(subparsers, "sweep", commands.sweep, SWEEP_TEXT, [*RUN_KEYS, "search", "ray"])
    _add_settings(fit, "prior.tau=100")
    _add_settings(sweep, "search.num_trials=12")
    _add_add_options(_add(subparsers, "add", commands.add, ADD_TEXT, ["data", "train", "metrics", "metric", *ADD_KEYS]))
    plan = _add(
        subparsers, "plan", commands.plan, PLAN_TEXT, ["data", "model", "lora", "prior", "train", "search", "ray"]
    )
    _add_plan_options(plan)
    _add_report_options(_add(subparsers, "report", commands.report, REPORT_TEXT))
    _add_status_options(_add(subparsers, "status", commands.status, STATUS_TEXT))
    _add_export_options(_add(subparsers, "export", commands.export, EXPORT_TEXT))
    _add_generate_options(_add(subparsers, "generate", commands.generate, GENERATE_TEXT))
    _add_forget_options(_add(subparsers, "forget", commands.forget, FORGET_TEXT))
    data = _add(subparsers, "data", commands.describe, "Inspect a corpus.")
    describe = _add(
        data.add_subparsers(metavar="COMMAND", required=True), "describe", commands.describe, DESCRIBE_TEXT, ["data"]
    )
    text = "corpora, YAML files, and settings such as data.min_documents=20"
    describe.add_argument("settings", nargs="*", metavar="FILE|key=value", help=text)
    return parser


def _add(subparsers, name: str, command: Callable[[argparse.Namespace], int], text: str, sections: Sequence[str] = ()):
    """Add a command, whose help lists the keys of these sections of the configuration."""
    keys = f"{KEYS}\n{describe_keys(sections)}" if sections else None
    first_line = text.partition("\n")[0]
    added = subparsers.add_parser(
        name, help=first_line, description=text, epilog=keys, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    added.set_defaults(command=command)
    return added


def _add_settings(parser: argparse.ArgumentParser, example: str) -> None:
    text = f"YAML files, merged left to right, then settings such as {example}"
    parser.add_argument("settings", nargs="*", metavar="FILE.yaml|key=value", help=text)
    text = "resume a run: that of output=RUN, else the newest in runs/"
    parser.add_argument("--resume", action="store_true", help=text)


def _add_add_options(parser: argparse.ArgumentParser) -> None:
    text = (
        "the run's folder, a file or folder of the new tasks' documents, YAML files, and settings over the run's, such "
        "as output=runs/new"
    )
    parser.add_argument("settings", nargs="*", metavar="RUN FILE|key=value", help=text)
    text = "a finished trial of the run; default: best on validation"
    parser.add_argument("--trial", default="best", metavar="ID", help=text)
    text = "tasks that the run has too are fitted anew, from their adapters there"
    parser.add_argument("--refresh", action="store_true", help=text)
    text = "resume an add: that of output=…, else the newest in runs/; RUN and FILE are known"
    parser.add_argument("--resume", action="store_true", help=text)


def _add_plan_options(parser: argparse.ArgumentParser) -> None:
    text = "YAML files and settings of the fit, such as model.name=facebook/opt-350m; with data.path its tasks count"
    parser.add_argument("settings", nargs="*", metavar="FILE.yaml|key=value", help=text)
    text = "the card's memory, such as 24GB, or its name, such as l4; exit code 1: the fit does not fit"
    parser.add_argument("--card", required=True, metavar="SIZE|NAME", help=text)
    text = "number of tasks; default: those of the corpus, 25 without one"
    parser.add_argument("--tasks", type=int, metavar="N", help=text)


def _add_report_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("--open", action="store_true", help="also show the page, RUN/report/index.html, in a browser")
    parser.add_argument("--against", choices=["paper"], help="also compare the run with the paper's results")


def _add_status_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the run's folder, also at s3://… or gs://…")
    text = "show it again after so many seconds, until no process works on the run"
    parser.add_argument("--watch", type=float, metavar="SECONDS", help=text)


def _add_export_options(parser: argparse.ArgumentParser) -> None:
    _add_trial(parser)
    parser.add_argument("out", metavar="OUT", help="a new or empty folder for adapters, model cards and tasks.json")
    parser.add_argument("--task", nargs="+", action="extend", metavar="NAME", help="only these tasks; default: all")
    form = parser.add_mutually_exclusive_group()
    text = "write full models: the base model with the adapter merged into its weights"
    form.add_argument("--merge", action="store_true", help=text)
    text = "write all tasks into one file, adapters.safetensors, with each task's row in tasks.json"
    form.add_argument("--bank", action="store_true", help=text)


def _add_generate_options(parser: argparse.ArgumentParser) -> None:
    _add_trial(parser)
    text = "the beginning of the text, or of a row with a prompt its prompt, or with --chat what the user says"
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help=text)
    text = "PROMPT is a user's message, written by the chat template; so it is where the run has conversations"
    parser.add_argument("--chat", action="store_true", help=text)
    parser.add_argument("--system", metavar="TEXT", help="with --chat: the system's message before it")
    text = "conversations, one JSON list of messages (or object with `messages`) per line; each is replied to"
    parser.add_argument("--messages", metavar="FILE.jsonl", help=text)
    text = "the value of a further column that data.prompt names; repeat the option for several"
    parser.add_argument("--column", action="append", default=[], metavar="NAME=TEXT", help=text)
    text = "a task, or _global for what all share; repeat the option for several"
    parser.add_argument("--task", action="append", required=True, metavar="NAME", help=text)
    text = "most tokens to generate; default: 64"
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help=text)
    text = "0 always takes the likeliest token; default: 1"
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help=text)
    text = "random seed, the same for each adapter; default: 0"
    parser.add_argument("--seed", type=int, default=0, metavar="S", help=text)


def _add_forget_options(parser: argparse.ArgumentParser) -> None:
    text = "the folder of a run, also at s3://… or gs://…, or of an export"
    parser.add_argument("run", metavar="RUN", help=text)
    text = "a task that leaves, by its name; repeat the option for several. Left out: finish what was cut off"
    parser.add_argument("--task", action="append", default=[], metavar="NAME", help=text)


def _add_trial(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    text = "a finished trial; default: best on validation"
    parser.add_argument("--trial", default="best", metavar="ID", help=text)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
