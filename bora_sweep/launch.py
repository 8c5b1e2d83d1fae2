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

from bora_sweep.config import Config, Setting, explicit_settings
from bora_sweep.errors import InputError
from bora_sweep.process import defer_signals, gc_paused
from bora_sweep.runs.folder import create_run, new_run, reopen_run
from bora_sweep.runs.run_lock import run_lock
from bora_sweep.runs.storage import Folder, exists

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel

    from bora_sweep.data.corpus import Corpus
    from bora_sweep.data.tokens import TokenizedCorpus
    from bora_sweep.trials.fingerprints import Fingerprints

SMALL_PARAMETERS = 500_000_000
"""Of a base that the process which starts a sweep tries before any trial does."""
FITTED = ("map", "vi", "zero_shot", "pfedme")
"""Methods of a fit of its own."""
USED_BY_A_FIT = {"search": {"estimate_tau"}, "ray": {"workers_per_trial"}}
"""Keys that a fit uses, of the sections that are otherwise a sweep's."""


@dataclass(frozen=True)
class PreparedRun:
    """A run that may begin, or go on."""

    config: Config
    run: Folder
    corpus: "TokenizedCorpus"
    groups: list[str]
    """Of parameters that have a tau of their own."""
    record: "pd.DataFrame | None"
    """Of its documents; None where the run has it already."""
    fingerprints: "Fingerprints"
    """Of what it stands on."""
    resumed: bool
    """Whether the run was there before."""


def open_run(settings: Sequence[Setting], command: str, resume: bool, console: Console) -> tuple[Config, Folder]:
    """The configuration and the folder of a new run, or of one that goes on.

    Raises:
        InputError: As `new_run` or `reopen_run` has it.
    """
    config, run = (reopen_run if resume else new_run)(settings, command)
    console.print(f"{'resuming' if resume else 'run folder'}: {escape(str(run))}")
    return config, run


@contextmanager
def processes(settings: Sequence[Setting], resume: bool) -> Iterator[bool]:
    """Within, the processes that a launcher has started for a fit are one.

    Yields:
        Whether this is the first of them, which alone speaks.

    Raises:
        InputError: The environment tells of processes that the fit does not ask for, or that are not there.
    """
    from bora_sweep.train.distributed import process_group

    rank, count = process_group.launcher_rank()
    if count > 1 and (rank == 0 or not resume):  # the first alone is sure to see the run's folder
        config, _ = (reopen_run if resume else new_run)(settings, "fit")
        process_group.check_launcher(config.ray.workers_per_trial)
    with process_group.joined_processes():
        yield process_group.is_rank_zero()


def prepare_fit(settings: Sequence[Setting], resume: bool, console: Console) -> PreparedRun:
    """Read the corpus, and refuse a model or settings that the fit could not use.

    Raises:
        InputError: The input is wrong.
    """
    from bora_sweep.train.device import refuse_other_count
    from bora_sweep.train.distributed import process_group

    config, run = process_group.from_rank_zero(lambda: open_run(settings, "fit", resume, console))
    given = explicit_settings(settings)
    ignored = [f"{part}.{name}" for part, used in USED_BY_A_FIT.items() for name in {*given.get(part, {})} - used]
    if ignored:
        console.print(f"[yellow]note:[/] a fit ignores these settings of a sweep: {', '.join(sorted(ignored))}")
    refuse_other_count(config)
    if process_group.count() > 1:
        console.print(
            f"one fit by {process_group.count()} processes, as the environment has it: {process_group.launcher_variables()}"
        )
    if config.method not in FITTED:
        raise InputError(
            f"method={config.method}: begins with another trial's adapters; search.baselines of a sweep has it"
        )
    _check_tracking(config, run)
    corpus, tokenized, record = _tokenized(config, run, resume, console)
    groups = [] if resume else _check_model(config, tokenized, console)
    fingerprints = _fingerprints(config, run, corpus, tokenized, resume, console)
    return PreparedRun(config, run, tokenized, groups, record, fingerprints, resume)


def run_fit(begun: PreparedRun, console: Console) -> dict[str, Any]:
    """Fit; how it goes is shown on `console`.

    Returns:
        The fit's row of `trials`.
    """
    from bora_sweep.model.base import load_base
    from bora_sweep.progress import FitProgress
    from bora_sweep.trials.trial import Trial, run_trial

    config = begun.config

    def base() -> "PreTrainedModel":
        return load_base(config.model, config.data)

    def say_stopping() -> None:
        console.print("stopping: writing a checkpoint … (Ctrl-C again to stop at once)")

    with defer_signals(say_stopping) as check_stop, FitProgress(config.train.max_epochs, console) as bar:
        return run_trial(
            Trial("fit", config),
            begun.corpus,
            base,
            begun.run,
            on_step=bar.on_step,
            on_epoch=bar.on_epoch,
            check_stop=check_stop,
        )


def prepare_sweep(settings: Sequence[Setting], resume: bool, console: Console) -> PreparedRun:
    """Read the corpus, and refuse a model or settings that no trial could use.

    Raises:
        InputError: The input is wrong.
    """
    from bora_sweep.tune.ray_folder import check_ray_folder

    config, run = open_run(settings, "sweep", resume, console)
    if config.init_from is not None:
        raise InputError(
            f"init_from={config.init_from}: only fit begins with adapters; a sweep compares fits that know nothing of "
            "the data but their own training: drop it"
        )
    given = explicit_settings(settings)
    if "tau" in given.get("prior", {}):
        raise InputError("prior.tau: a sweep chooses its own values; name some by search.taus=[…], or use fit")
    if "method" in given:
        raise InputError("method: a sweep is of MAP fits and search.baselines; name it there, or use fit")
    _check_tracking(config, run)
    if config.ray.address is None:
        check_ray_folder()
    corpus, tokenized, record = _tokenized(config, run, resume, console)
    groups = _check_model(config, tokenized, console)
    _try_small_model(config, tokenized)
    fingerprints = _fingerprints(config, run, corpus, tokenized, resume, console)
    return PreparedRun(config, run, tokenized, groups, record, fingerprints, resume)


def run_prepared_sweep(begun: PreparedRun, console: Console) -> bool:
    """Fit every trial of a sweep; False where it was interrupted."""
    from bora_sweep.tune import run_sweep

    return run_sweep(begun.config, begun.corpus, begun.run, begun.groups, console)


@contextmanager
def claim_run(begun: PreparedRun, command: str) -> Iterator[None]:
    """Within, this process alone works on the run, whose folder and configuration are there.

    Raises:
        InputError: Another works on it.
    """
    from bora_sweep.data.known_documents import write_documents
    from bora_sweep.trials.fingerprints import write_fingerprints

    with run_lock(begun.run, command):
        if not begun.resumed and exists(begun.run / "config.yaml"):  # another process began it meanwhile
            raise InputError(f"output={begun.run}: holds a run by now, begun by another process; give another output")
        if begun.record is not None:
            write_documents(begun.run, begun.record)
        write_fingerprints(begun.run, begun.fingerprints)
        create_run(begun.config, begun.run)
        yield


def _fingerprints(
    config: Config, run: Folder, corpus: "Corpus", tokenized: "TokenizedCorpus", resume: bool, console: Console
) -> "Fingerprints":
    """Of what the run stands on, which is what it was begun with: in each process of a fit, and each time."""
    from bora_sweep.train.distributed.process_group import from_rank_zero
    from bora_sweep.trials.fingerprints import check_unchanged, fingerprints_of, read_fingerprints

    now = fingerprints_of(config, corpus, tokenized)
    before = from_rank_zero(lambda: read_fingerprints(run) if resume else now)
    if before is None:
        kept = "begun by a release that did not note its data and model: whether they are the same is not known"
        console.print(f"[yellow]note:[/] {escape(str(run))}: {kept}")
    else:
        check_unchanged(run, config, before, now)
    return before or now  # adapters that are gone by now are still those that the run began with


def _tokenized(
    config: Config, run: Folder, resume: bool, console: Console
) -> tuple["Corpus", "TokenizedCorpus", "pd.DataFrame | None"]:
    """The corpus, its tokens, and the record of its documents unless the run has one."""
    with gc_paused():
        from bora_sweep.data.corpus import load_corpus
        from bora_sweep.data.known_documents import DOCUMENTS, records_of
        from bora_sweep.data.tokens import remarks, tokenize_for
        from bora_sweep.model.base import load_tokenizer

    is_recorded = resume and exists(run / DOCUMENTS)
    known_from = [run] if is_recorded else records_of(config)
    if not known_from and config.init_from is not None and not resume:
        unknown = "does not say which documents it was trained on: some may be in validation or test here"
        console.print(f"[yellow]note:[/] init_from={escape(config.init_from)}: {unknown}")
    corpus = load_corpus(config.data, known_from, resumed=is_recorded)
    tokenized = tokenize_for(config, corpus, load_tokenizer(config.model, config.data))
    num_cut = int(tokenized.documents["was_cut"].to_numpy().sum())
    for note in (*corpus.notes, *remarks(tokenized)):
        console.print(f"[yellow]note:[/] {escape(note)}")
    console.print(f"{escape(corpus.name)}: {len(corpus.tasks)} tasks, {len(corpus.documents):,} documents, "
                  f"{tokenized.num_tokens('train'):,} tokens to train on")  # fmt: skip
    if num_cut:
        longer = f"longer than model.max_tokens={config.model.max_tokens} allows and were cut"
        console.print(f"[yellow]note:[/] {num_cut:,} documents are {longer}")
    return corpus, tokenized, None if is_recorded else corpus.record


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
    from bora_sweep.model.base import empty_base, refuse_mismatch
    from bora_sweep.model.layout import make_layout
    from bora_sweep.model.peft_check import sites_by_weight
    from bora_sweep.model.peft_io import read_adapters
    from bora_sweep.model.prior import refuse_unknown_groups
    from bora_sweep.model.sites import notes_on_sites

    base = empty_base(config.model, config.data)
    refuse_mismatch(base, corpus.largest_token, corpus.longest)
    for note in notes_on_sites(base, config.lora):
        console.print(f"[yellow]note:[/] {escape(note)}")
    layout = make_layout(base, config.lora)
    sites_by_weight(base, layout, config.lora)  # refuses what an export could not hold
    if config.init_from is not None:
        read_adapters(Path(config.init_from), layout, config.lora, corpus.tasks, config.model.name)
    return refuse_unknown_groups(config.prior, layout)


def _try_small_model(config: Config, corpus: "TokenizedCorpus") -> None:
    """Refuse a base here, once, that every trial would refuse; a large one is left to where the memory is."""
    from bora_sweep.model.adapted import AdaptedModel
    from bora_sweep.model.base import empty_base, load_base
    from bora_sweep.model.layout import make_layout
    from bora_sweep.model.lengths import length_limits

    empty = empty_base(config.model, config.data)
    if sum(weight.numel() for weight in empty.parameters()) > SMALL_PARAMETERS:
        return
    base = load_base(config.model, config.data)
    AdaptedModel(base, make_layout(base, config.lora)).remove_hooks()
    length_limits(base, corpus.shortest, corpus.longest)
