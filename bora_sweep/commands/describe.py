"""`bora-sweep data describe`."""

import argparse

from rich.markup import escape

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
    parser.add_argument("settings", nargs="*", metavar="FILE|key=value", help=text)


def run(parsed: argparse.Namespace) -> int:
    """Describe each corpus that is named, or else that of the settings."""
    from bora_sweep.data.corpus import load_corpus
    from bora_sweep.data.describe import describe as describe_corpus
    from bora_sweep.data.describe import example
    from bora_sweep.data.known_documents import record_folders
    from bora_sweep.data.tokens import token_notes, tokenize_for
    from bora_sweep.model.base import load_tokenizer

    paths, settings = split_paths(parsed.settings)
    for config in [load_config(with_corpus([path], settings)) for path in paths] or [load_config(settings)]:
        corpus = load_corpus(config.data, record_folders(config))
        if config.model.name is None and config.data.kind != "synthetic":
            for part in describe_corpus(corpus):
                out.print(part)
            continue
        tokenizer = load_tokenizer(config.model, config.data)
        tokenized = tokenize_for(config, corpus, tokenizer)
        notes = [f"• {escape(note)}" for note in token_notes(tokenized)]
        for part in (*describe_corpus(corpus, tokenized.table()), *notes):
            out.print(part)
        out.print(example(tokenized, tokenizer, in_color=out.is_terminal))
    return DONE
