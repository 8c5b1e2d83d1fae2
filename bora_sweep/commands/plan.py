"""`bora-sweep plan`."""

import argparse

from bora_sweep.commands.common import DONE, FAILED, out, split_paths, with_corpus

TEXT = "Reckon whether a fit fits on a card, before one is rented. No weights and no GPU are needed."
SECTIONS = ["data", "model", "lora", "prior", "train", "search", "ray"]
KEYS = [
    "data.path", "model.name", "model.dtype", "model.quantization", "model.max_tokens", "lora.rank",
    "lora.target_modules", "train.batch_size", "train.micro_batch_size", "search.pack",
]  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    text = "documents, whose tasks count, YAML files, and settings of the fit, such as model.name=facebook/opt-350m"
    parser.add_argument("settings", nargs="*", default=[], metavar="FILE|FILE.yaml|key=value", help=text)
    text = "the card's memory, such as 24GB, or its name, such as l4; exit code 1: the fit does not fit"
    parser.add_argument("--card", required=True, metavar="SIZE|NAME", help=text)
    text = "number of tasks; default: those of the corpus, 25 without one"
    parser.add_argument("--tasks", type=int, metavar="N", help=text)


def run(parsed: argparse.Namespace) -> int:
    """Show whether a fit fits on a card; exit with 1 if it does not."""
    from bora_sweep.plan import make_plan, render

    planned = make_plan(with_corpus(*split_paths(parsed.settings)), parsed.card, parsed.tasks)
    for part in render(planned):
        out.print(part)
    return DONE if planned.is_fitting else FAILED
