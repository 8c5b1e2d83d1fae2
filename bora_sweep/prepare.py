"""Check a fit or a sweep before it begins: its settings, its corpus, its model, and what a resumed run began with.

Nothing is written here. What is wrong is refused now, with one message, and not later by each trial.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from bora_sweep.config import Config, Setting, TrainConfig, explicit_settings, with_values
from bora_sweep.errors import InputError, plural
from bora_sweep.process import gc_paused
from bora_sweep.runs.folder import new_run, reopen_run
from bora_sweep.runs.storage import Folder, exists

if TYPE_CHECKING:
    import pandas as pd

    from bora_sweep.data.corpus import Corpus
    from bora_sweep.data.tokens import TokenizedCorpus
    from bora_sweep.trials.add import Foundation
    from bora_sweep.trials.fingerprints import Fingerprints
    from bora_sweep.tune.numbering import Numbering

FIT_METHODS = ("map", "vi", "zero_shot", "pfedme")
"""Methods that a single fit can have. The others are baselines of a sweep, whose trials or tasks say how."""
USED_BY_A_FIT = {"search": {"estimate_tau", "unseen_folds"}, "ray": {"workers_per_trial"}}
"""Keys that a fit uses, of the sections that are otherwise a sweep's."""


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A run that has been checked, and can begin or resume."""

    config: Config
    run: Folder
    corpus: "TokenizedCorpus"
    groups: list[str]
    """Groups of parameters with a tau of their own."""
    record: "pd.DataFrame | None"
    """The record of the run's documents; None where the run has it already."""
    fingerprints: "Fingerprints"
    """Of the data, the model and the adapters that the run began with."""
    resumed: bool
    """Whether the run existed before."""
    foundation: "Foundation | None" = None
    """What a new run of `add` takes over from another run."""
    numbering: "Numbering | None" = None
    """Of the points of a sweep."""


def prepare_fit(settings: Sequence[Setting], resume: bool, console: Console) -> PreparedRun:
    """Read the corpus, and refuse settings or a model that the fit could not use.

    Args:
        settings: Of the command line or of `bora_sweep.fit`.
        resume: Whether to reopen a run.
        console: Gets notes on the data and the settings.

    Raises:
        InputError: The input is wrong. Nothing was written.
    """
    from bora_sweep.train.distributed.process_group import from_rank_zero

    config, run, before = from_rank_zero(lambda: _open_run(settings, "fit", resume))
    _check_fit(settings, config, console)
    check_run_tracker(config, run)
    corpus, tokenized, record = _read_corpus(config, run, resume, console)
    _check_unseen(config, tokenized)
    groups = [] if resume else check_base(config, tokenized, console, load=True)
    fingerprints = _fingerprints(config, run, corpus, tokenized, console, before=before, resume=resume)
    return PreparedRun(
        config=config, run=run, corpus=tokenized, groups=groups, record=record, fingerprints=fingerprints,
        resumed=resume,
    )  # fmt: skip


def prepare_sweep(settings: Sequence[Setting], resume: bool, console: Console) -> PreparedRun:
    """Read the corpus, and refuse settings or a model that no trial could use.

    Args:
        settings: Of the command line or of `bora_sweep.sweep`.
        resume: Whether to reopen a run.
        console: Gets notes on the data and the settings.

    Raises:
        InputError: The input is wrong. Nothing was written.
    """
    config, run, before = _open_run(settings, "sweep", resume)
    _check_sweep(settings, config)
    numbering = _number_points(config, run, resume, console)
    _check_points(config, numbering)
    check_run_tracker(config, run)
    corpus, tokenized, record = _read_corpus(config, run, resume, console)
    _check_unseen(config, tokenized)
    config = _with_wide_rank(config, tokenized, console)
    groups = check_base(config, _longest_corpus(config, tokenized), console, load=True, is_sweep=True)
    fingerprints = _fingerprints(config, run, corpus, tokenized, console, before=before, resume=resume)
    return PreparedRun(
        config=config, run=run, corpus=tokenized, groups=groups, record=record, fingerprints=fingerprints,
        resumed=resume, numbering=numbering,
    )  # fmt: skip


def _number_points(config: Config, run: Folder, resume: bool, console: Console) -> "Numbering":
    """The numbers of a sweep's points; a sweep that is resumed may have got more, and not fewer."""
    from bora_sweep.runs.folder import config_of
    from bora_sweep.runs.results import trial_rows
    from bora_sweep.tune.numbering import check_numbering, extended, new_numbering, read_numbering

    if not resume:
        return new_numbering(config)
    before = config_of(run)
    numbering, rows = read_numbering(run, before), trial_rows(run)
    check_numbering(run, before, numbering, rows)
    more = extended(before, config, numbering, rows)
    if added := more.num_fits(config) - numbering.num_fits(before):
        console.print(f"extended by {plural(added, 'fit')}: {more.num_fits(config):,} in all")
    return more


def _check_points(config: Config, numbering: "Numbering") -> None:
    """Refuse a sweep of which a fit could not have its settings."""
    from bora_sweep.tune.points import Point, trial_config

    config = _with_a_rate(config)
    for point in [*numbering.given.values(), Point(0, config.search.tau_low)]:
        trial_config(config, point, 0)


def _with_a_rate(config: Config) -> Config:
    """With a number in the place of the rate that the range test will choose, as the fits of the sweep have one."""
    if config.train.learning_rate != "auto":
        return config
    return with_values(config, train={"learning_rate": TrainConfig().learning_rate})


def _open_run(settings: Sequence[Setting], command: str, resume: bool) -> tuple[Config, Folder, "Fingerprints | None"]:
    """The configuration and the folder of a new run, or of one that resumes; and the fingerprints that it has."""
    config, run = (reopen_run if resume else new_run)(settings, command)
    if not resume:
        return config, run, None
    with gc_paused():
        from bora_sweep.trials.fingerprints import read_fingerprints
    return config, run, read_fingerprints(run)


def _check_fit(settings: Sequence[Setting], config: Config, console: Console) -> None:
    """Refuse settings that a single fit cannot have, and note those that it ignores."""
    from bora_sweep.train.device import refuse_other_count
    from bora_sweep.train.distributed import process_group

    given = explicit_settings(settings)
    ignored = [f"{part}.{name}" for part, used in USED_BY_A_FIT.items() for name in {*given.get(part, {})} - used]
    if ignored:
        console.print(f"[yellow]note:[/] a fit ignores these settings of a sweep: {', '.join(sorted(ignored))}")
    refuse_other_count(config)
    if (count := process_group.count()) > 1:
        console.print(f"one fit by {count} processes, started with {process_group.launcher_variables()}")
    if config.method == "add":
        raise InputError("method=add: new tasks are added to a run; use bora-sweep add RUN FILE")
    if config.method not in FIT_METHODS:
        raise InputError(
            f"method={config.method}: is a baseline of a sweep; use sweep, with search.baselines=[…,{config.method}]"
        )
    if config.search.unseen_folds is not None and config.method != "map":
        raise InputError(
            f"search.unseen_folds={config.search.unseen_folds}: leaves tasks out of fits of method=map, not of "
            f"{config.method}; drop one of the two"
        )


def _check_sweep(settings: Sequence[Setting], config: Config) -> None:
    """Refuse settings that a sweep cannot have, and a machine on which Ray could not start."""
    if config.init_from is not None:
        raise InputError(
            f"init_from={config.init_from}: a sweep compares fits that have seen only their own training data; drop "
            "it, or use fit"
        )
    given = explicit_settings(settings)
    if "tau" in given.get("prior", {}):
        raise InputError(
            "prior.tau: a sweep chooses its own values; name some by search.taus=[…], let a fit find one by "
            "search.baselines=[…,learnt], or use fit"
        )
    if "method" in given:
        raise InputError("method: a sweep makes MAP fits and search.baselines; name it there, or use fit")
    if config.ray.address is None:
        from bora_sweep.tune.ray_folder import check_ray_folder

        check_ray_folder()


def _with_wide_rank(config: Config, corpus: "TokenizedCorpus", console: Console) -> Config:
    """The configuration with `search.wide_rank` as a number, where `shared_wide` is fitted."""
    search, rank = config.search, config.lora.rank
    if "shared_wide" not in search.baselines or search.wide_rank is not None:
        return config
    from bora_sweep.model.base import empty_base
    from bora_sweep.model.sites import find_sites
    from bora_sweep.model.wide_rank import wide_rank

    wanted = rank * len(corpus.tasks)
    wide = wide_rank(rank, len(corpus.tasks), find_sites(empty_base(config.model, config.data), config.lora))
    if wide < wanted:
        print_notes(
            [
                f"shared_wide: {wide} is the highest rank that adds anything at these modules; with as many parameters "
                f"as the adapters of {plural(len(corpus.tasks), 'task')} together it would have rank {wanted}"
            ],
            console,
        )
    return with_values(config, search={"wide_rank": wide})


def _longest_corpus(config: Config, corpus: "TokenizedCorpus") -> "TokenizedCorpus":
    """That of the fit with the longest sequences: of `task_prompt`, where it is fitted."""
    if "task_prompt" not in config.search.baselines:
        return corpus
    from bora_sweep.data.encode import Encoder
    from bora_sweep.data.task_prompt import with_task_names
    from bora_sweep.model.base import load_tokenizer

    encoder = Encoder(load_tokenizer(config.model, config.data))
    return with_task_names(with_values(_with_a_rate(config), method="task_prompt"), corpus, encoder)


def _check_unseen(config: Config, corpus: "TokenizedCorpus") -> None:
    if config.search.unseen_folds is not None:
        from bora_sweep.train.unseen import check_folds

        check_folds(config.search.unseen_folds, corpus, config.train.seed)


def check_run_tracker(config: Config, run: Folder) -> None:
    """Refuse a tracker that is not installed, or cannot write where the run is."""
    if config.tracking is not None:
        from bora_sweep.trials.tracking import check_tracker

        check_tracker(config.tracking, run)


def check_base(
    config: Config, corpus: "TokenizedCorpus", console: Console, *, load: bool = False, is_sweep: bool = False
) -> list[str]:
    """Refuse a model that cannot be used; with `load` also by trying it, if it is small.

    Returns:
        The groups of parameters with a tau of their own.
    """
    from bora_sweep.model.preflight import check_model, try_model

    groups, notes = check_model(config, corpus)
    print_notes(notes, console)
    if config.model.dtype == "auto":
        console.print(f"model.dtype=auto: {escape(_chosen_dtype(config, is_sweep=is_sweep))}")
    if load:
        try_model(config, corpus)
    return groups


def _chosen_dtype(config: Config, *, is_sweep: bool) -> str:
    """The type of weights that `model.dtype=auto` means, in words."""
    from bora_sweep.model.base import weights_dtype

    if is_sweep and config.ray.address is not None:
        return "bfloat16 in trials on a GPU that computes in it, else float32"
    dtype = str(weights_dtype(config.model)).removeprefix("torch.")
    return f"{dtype}, as no GPU here computes in bfloat16" if dtype == "float32" else f"{dtype} on the GPU"


def _read_corpus(
    config: Config, run: Folder, resume: bool, console: Console
) -> tuple["Corpus", "TokenizedCorpus", "pd.DataFrame | None"]:
    """The corpus, its tokens, and the record of its documents, which is None if the run has one."""
    with gc_paused():
        from bora_sweep.data.corpus import load_corpus
        from bora_sweep.data.known_documents import DOCUMENTS, record_folders
        from bora_sweep.data.tokens import token_notes, tokenize_for
        from bora_sweep.model.base import load_tokenizer
        from bora_sweep.train.metrics.functions import check_metrics

    is_recorded = resume and exists(run / DOCUMENTS)
    known_from = [run] if is_recorded else record_folders(config)
    if not known_from and config.init_from is not None and Path(config.init_from).is_dir() and not resume:
        unknown = "does not say which documents it was trained on; some may be in validation or test here"
        print_notes([f"init_from={config.init_from}: {unknown}"], console)
    check_metrics(config)
    corpus = load_corpus(config.data, known_from, resumed=is_recorded)
    tokenized = tokenize_for(config, corpus, load_tokenizer(config.model, config.data))
    print_notes([*corpus.notes, *token_notes(tokenized)], console)
    console.print(
        f"{escape(corpus.name)}: {len(corpus.tasks):,} tasks, {len(corpus.documents):,} documents, "
        f"{tokenized.num_tokens('train'):,} tokens to train on"
    )
    return corpus, tokenized, None if is_recorded else corpus.record


def _fingerprints(
    config: Config, run: Folder, corpus: "Corpus", tokenized: "TokenizedCorpus", console: Console,
    *, before: "Fingerprints | None", resume: bool,
) -> "Fingerprints":  # fmt: skip
    """The fingerprints that the run began with; a resumed run is refused if its data or model have changed."""
    from bora_sweep.trials.fingerprints import check_unchanged, fingerprints_of

    now = fingerprints_of(config, corpus, tokenized)
    if before is not None:
        check_unchanged(run, config, before, now)
        if unknown := before.unknown:
            _refuse_changed_documents(run, corpus)
            since = "a task was forgotten, so these cannot be compared with the run's start, and count as they are now"
            print_notes([f"{run}: {since}: {', '.join(unknown)}"], console)
        return before.filled_in(now)  # and `before` also of adapters that are gone by now
    if resume:
        unknown = "an older release began it without fingerprints, so whether data and model are the same is unknown"
        print_notes([f"{run}: {unknown}"], console)
    return now


def _refuse_changed_documents(run: Folder, corpus: "Corpus") -> None:
    """Refuse documents with another text or prompt, where the run does not know the tokens that they had."""
    from bora_sweep.data.known_documents import DOCUMENTS, changed_tasks, read_documents

    changed = changed_tasks(read_documents(run), corpus.record) if exists(run / DOCUMENTS) else []
    if changed:
        raise InputError(
            f"{run}: cannot resume, as its inputs have changed. data: task {changed[0]!r} has other documents or "
            f"prompts{f', and {len(changed) - 1} more tasks' if len(changed) > 1 else ''}. Restore them, or begin a "
            "new run with another output"
        )


def print_notes(notes: Sequence[str], console: Console) -> None:
    """Print notes on the data and the model, one a line."""
    for note in notes:
        console.print(f"[yellow]note:[/] {escape(note)}")
