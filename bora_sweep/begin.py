"""A fit or a sweep from its settings: what is refused before anything is begun, then the work.

The command line and the Python interface are two ways in here.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from bora_sweep.config import Config, Setting
from bora_sweep.errors import InputError
from bora_sweep.imports import uncollected
from bora_sweep.interrupt import noting_signals
from bora_sweep.runs import create_run, driving, new_run, reopen_run
from bora_sweep.storage import Folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bora_sweep.data.tokens import TokenizedCorpus

SMALL_PARAMETERS = 500_000_000
"""Of a base that the process which starts a sweep tries before any trial does."""
FITTED = ("map", "vi", "zero_shot", "pfedme")
"""Methods of a fit of its own."""


@dataclass(frozen=True)
class Begun:
    """A run that may begin, or go on."""

    config: Config
    run: Folder
    corpus: "TokenizedCorpus"
    groups: list[str]
    """Of parameters that have a tau of their own."""


def open_run(settings: Sequence[Setting], command: str, resume: bool, console: Console) -> tuple[Config, Folder]:
    """The configuration and the folder of a new run, or of one that goes on.

    Raises:
        InputError: As `new_run` or `reopen_run` has it.
    """
    config, run = (reopen_run if resume else new_run)(settings, command)
    console.print(f"{'resuming' if resume else 'run folder'}: {run}")
    return config, run


def begin_fit(settings: Sequence[Setting], resume: bool, console: Console) -> Begun:
    """Read the corpus, and refuse a model or settings that the fit could not use.

    Raises:
        InputError: The input is wrong.
    """
    from bora_sweep.train.device import refuse_other_count
    from bora_sweep.train.ranks import first

    config, run = first(lambda: open_run(settings, "fit", resume, console))
    refuse_other_count(config)
    if config.method not in FITTED:
        raise InputError(
            f"method={config.method}: begins with another trial's adapters; search.baselines of a sweep has it"
        )
    _check_tracking(config, run)
    corpus = _tokenized(config, console)
    return Begun(config, run, corpus, [] if resume else _check_model(config, corpus, console))


def run_fit(begun: Begun, console: Console) -> dict[str, Any]:
    """Fit; how it goes is shown on `console`.

    Returns:
        The fit's row of `trials`.
    """
    from bora_sweep.model.base import load_base
    from bora_sweep.progress import FitProgress
    from bora_sweep.train.run import Trial, run_trial

    config = begun.config

    def base() -> "PreTrainedModel":
        return load_base(config.model, config.data)

    def say_stopping() -> None:
        console.print("stopping: writing a checkpoint … (Ctrl-C again to stop at once)")

    with noting_signals(say_stopping) as pulse, FitProgress(config.train.max_epochs, console) as bar:
        return run_trial(Trial("fit", config), begun.corpus, base, begun.run, bar.on_step, bar.on_epoch, pulse)


def begin_sweep(settings: Sequence[Setting], resume: bool, console: Console) -> Begun:
    """Read the corpus, and refuse a model or settings that no trial could use.

    Raises:
        InputError: The input is wrong.
    """
    config, run = open_run(settings, "sweep", resume, console)
    if config.init_from is not None:
        raise InputError(
            f"init_from={config.init_from}: only fit begins with adapters; a sweep compares fits that know nothing of "
            "the data but their own training: drop it"
        )
    _check_tracking(config, run)
    corpus = _tokenized(config, console)
    groups = _check_model(config, corpus, console)
    _try_small_model(config, corpus)
    return Begun(config, run, corpus, groups)


def run_all(begun: Begun, console: Console) -> bool:
    """Fit every trial of a sweep; False where it was interrupted."""
    from bora_sweep.tune import run_sweep

    return run_sweep(begun.config, begun.corpus, begun.run, begun.groups, console)


@contextmanager
def held(begun: Begun, command: str) -> Iterator[None]:
    """Within, this process alone works on the run, whose folder and configuration are there.

    Raises:
        InputError: Another works on it.
    """
    with driving(begun.run, command):
        create_run(begun.config, begun.run)
        yield


def _tokenized(config: Config, console: Console) -> "TokenizedCorpus":
    with uncollected():
        from bora_sweep.data.corpus import load_corpus
        from bora_sweep.data.tokens import tokenize_for
        from bora_sweep.model.base import load_tokenizer

    corpus = load_corpus(config.data)
    for note in corpus.notes:
        console.print(f"[yellow]note:[/] {escape(note)}")
    tokenized = tokenize_for(config, corpus, load_tokenizer(config.model, config.data))
    num_cut = int(tokenized.documents["was_cut"].to_numpy().sum())
    console.print(f"{corpus.name}: {len(corpus.tasks)} tasks, {len(corpus.documents):,} documents, "
                  f"{tokenized.num_tokens('train'):,} tokens to train on")  # fmt: skip
    if num_cut:
        longer = f"longer than model.max_tokens={config.model.max_tokens} allows and were cut"
        console.print(f"[yellow]note:[/] {num_cut:,} documents are {longer}")
    return tokenized


def _check_tracking(config: Config, run: Folder) -> None:
    """Refuse a tracker that is not installed, or that cannot write where the run is."""
    name = config.tracking
    if name is None:
        return
    packages = {"tensorboard": ("tensorboard", "tensorboardX"), "mlflow": ("mlflow",), "wandb": ("wandb",)}[name]
    if not any(find_spec(package) for package in packages):
        raise InputError(f"tracking={name}: is not installed here; pip install 'bora-sweep[{name}]', or drop it")
    if isinstance(run, Path) or name == "wandb" or (name == "mlflow" and "MLFLOW_TRACKING_URI" in os.environ):
        return
    mend = "set MLFLOW_TRACKING_URI" if name == "mlflow" else "set tracking=mlflow or wandb"
    raise InputError(f"tracking={name}: writes into folders, and output={run} is none; {mend}, or drop it")


def _check_model(config: Config, corpus: "TokenizedCorpus", console: Console) -> list[str]:
    """Refuse a model, targets or adapters that no trial could use, before anything is begun; notes are shown.

    Returns:
        The groups of parameters that have a tau of their own.
    """
    from bora_sweep.model.adapters import make_layout
    from bora_sweep.model.base import empty_base, refuse_mismatch
    from bora_sweep.model.interchange import read_adapters
    from bora_sweep.model.prior import refuse_unknown_groups
    from bora_sweep.model.sites import about_sites

    base = empty_base(config.model, config.data)
    refuse_mismatch(base, corpus.largest_token, corpus.longest)
    for note in about_sites(base, config.lora):
        console.print(f"[yellow]note:[/] {escape(note)}")
    layout = make_layout(base, config.lora)
    if config.init_from is not None:
        read_adapters(Path(config.init_from), layout, config.lora, corpus.tasks)
    return refuse_unknown_groups(config.prior, layout)


def _try_small_model(config: Config, corpus: "TokenizedCorpus") -> None:
    """Refuse a base here, once, that every trial would refuse; a large one is left to where the memory is."""
    from bora_sweep.model.adapters import AdaptedModel, make_layout
    from bora_sweep.model.base import empty_base, load_base
    from bora_sweep.model.lengths import length_limits

    empty = empty_base(config.model, config.data)
    if sum(weight.numel() for weight in empty.parameters()) > SMALL_PARAMETERS:
        return
    base = load_base(config.model, config.data)
    AdaptedModel(base, make_layout(base, config.lora)).detach()
    length_limits(base, corpus.shortest, corpus.longest)
