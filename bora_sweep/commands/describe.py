"""`bora-sweep data describe`."""

import argparse

from bora_sweep.commands.common import DONE, out, split_paths
from bora_sweep.config import load_config
from bora_sweep.errors import InputError

TEXT = "Show the tasks, documents, tokens and splits of a corpus, and what may be wrong with it."
SECTIONS = ["data"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    text = "corpora, YAML files, and settings such as data.min_documents=20"
    parser.add_argument("settings", nargs="*", metavar="FILE|key=value", help=text)


def run(parsed: argparse.Namespace) -> int:
    """Describe each corpus that is named, or else that of the settings."""
    from bora_sweep.views import describe_config

    paths, settings = split_paths(parsed.settings)
    also_named = next((setting for setting in settings if setting.startswith("data.path=")), None)
    if paths and also_named is not None:
        raise InputError(f"{also_named}: {paths[0]} names a corpus too; drop one of the two")
    for config in [load_config([*settings, {"data": {"path": path}}]) for path in paths] or [load_config(settings)]:
        for part in describe_config(config, in_color=out.is_terminal).parts:
            out.print(part)
    return DONE
