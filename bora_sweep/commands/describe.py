"""`bora-sweep data describe`."""

import argparse

from bora_sweep.commands.common import DONE, out, split_paths, with_corpus
from bora_sweep.config import load_config

TEXT = "Show the tasks, documents, tokens and splits of a corpus, and what may be wrong with it."
SECTIONS = ["data"]
KEYS = [
    "data.path", "data.source", "data.task_column", "data.text_column", "data.prompt_column",
    "data.messages_column", "data.split_column", "data.min_documents", "data.max_tasks", "data.prompt",
]  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    text = "corpora, YAML files, and settings such as data.min_documents=20"
    parser.add_argument("settings", nargs="*", default=[], metavar="FILE|key=value", help=text)


def run(parsed: argparse.Namespace) -> int:
    """Describe each corpus that is named, or else that of the settings."""
    from bora_sweep.views import describe_config

    paths, settings = split_paths(parsed.settings)
    for config in [load_config(with_corpus([path], settings)) for path in paths] or [load_config(settings)]:
        for part in describe_config(config, in_color=out.is_terminal).parts:
            out.print(part)
    return DONE
