"""Check an `add` before it begins: the run and the trial that it stands on, its settings, its new documents.

Nothing is written here.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from bora_sweep.config import (
    Config,
    DataConfig,
    MetricConfig,
    RayConfig,
    SearchConfig,
    Setting,
    TrainConfig,
    explicit_settings,
    flatten,
    with_values,
)
from bora_sweep.config.data import COLUMNS
from bora_sweep.errors import InputError, and_more, plural
from bora_sweep.groups_to_add import (
    check_groups,
    group_notes,
    groups_to_add,
    known_groups,
    own_precisions,
    tau_2_and_scales,
)
from bora_sweep.prepare import PreparedRun, check_base, check_run_tracker, print_notes
from bora_sweep.process import gc_paused
from bora_sweep.runs.folder import ADD, new_run, reopen_run
from bora_sweep.runs.places import MODEL
from bora_sweep.runs.source import Source, read_source
from bora_sweep.runs.storage import Folder, exists, folder_at

if TYPE_CHECKING:
    from bora_sweep.data.corpus import Corpus
    from bora_sweep.data.tokens import TokenizedCorpus
    from bora_sweep.serve.load import LoadedTrial
    from bora_sweep.trials.add import Foundation

METHODS = ("map", "pfedme", "add")
"""Methods whose trials have a Theta and a tau that new tasks can be added under."""
HOLD_OUT_FROM = 20
"""`data.hold_out_from` of an `add`: with fewer documents a validation split of the default 17% has 3 at most, which
would choose the epoch by chance, and half of the few documents would not be learnt from."""
BATCH_SIZE = 8
"""`train.batch_size` of an `add`, the documents of each task in a step: a task of so few takes exact gradients."""
FORMS = {"text": "running text", "prompt": "prompts with completions", "conversation": "conversations"}
FIXED = ("model", "lora", "prior", "protocol", "method", "init_from", "search", "ray")
"""Keys that the run decides, and those of a sweep."""


def prepare_add(
    run: str | Folder | None,
    settings: Sequence[Setting],
    console: Console,
    *,
    trial: str = "best",
    refresh: bool = False,
    resume: bool = False,
) -> PreparedRun:
    """Read the new documents, and refuse a run, settings or tasks that cannot be added.

    Args:
        run: The run whose Theta and tau hold; None: with `resume`, the one that the `add` began with.
        settings: Over those of the trial; among them `data.path`.
        console: Gets notes on the data and the settings.
        trial: The ID of a finished trial of the run; `best`: as for export.
        refresh: Whether tasks that the trial has are fitted anew, from their adapters.
        resume: Whether to reopen an `add`.

    Raises:
        InputError: The input is wrong. Nothing was written.
    """
    if resume:
        return _reopen(run, settings, console)
    if run is None:
        raise InputError("add: name the folder of the run, then the file of the new documents: add RUN FILE")
    with gc_paused():
        from bora_sweep.serve.load import load_trial
        from bora_sweep.trials.fingerprints import check_base_model, fingerprints_of
    source = folder_at(run)
    loaded = load_trial(source, trial, _base_elsewhere(settings))
    _check_trial(source, loaded)
    _refuse_moves(settings)
    check_groups(source, loaded, settings)
    defaults = config_to_add(loaded, settings)
    config, folder = new_run([defaults, *settings], ADD)
    _check_settings(source, settings, config, defaults)
    check_run_tracker(config, folder)
    corpus, tokenized = _read_corpus(config, [source], console)
    refreshed = _check_tasks(source, loaded, corpus, refresh=refresh)
    if loaded.form != corpus.form:
        raise InputError(
            f"{config.data.path}: holds {FORMS[corpus.form]}, where {source} has {FORMS[loaded.form]}; give documents "
            "of that kind"
        )
    config = _without_metrics(config, corpus, console)
    config = with_values(config, prior=own_precisions(source, loaded, tokenized, refreshed))
    check_base(config, tokenized, console)
    fingerprints = fingerprints_of(config, corpus, tokenized)
    check_base_model(source, config.model, config.data, fingerprints.model)
    print_notes([*_notes(source, loaded, corpus, refreshed), *group_notes(source, loaded, tokenized)], console)
    return PreparedRun(
        config=config, run=folder, corpus=tokenized, groups=[], record=corpus.record, fingerprints=fingerprints,
        resumed=False, foundation=_foundation(source, loaded, refreshed),
    )  # fmt: skip


def _reopen(run: str | Folder | None, settings: Sequence[Setting], console: Console) -> PreparedRun:
    """An `add` that goes on; it needs nothing of the run that it stands on, which may have moved."""
    with gc_paused():
        from bora_sweep.trials.fingerprints import check_unchanged, fingerprints_of, read_fingerprints
    config, folder = reopen_run(settings, ADD)
    began = read_source(folder)
    if run is not None and _address(folder_at(run)) != began.run and not _is_source(folder_at(run), began):
        raise InputError(f"{run}: the run was begun by adding to {began.run}; name that, or give another output")
    check_run_tracker(config, folder)
    corpus, tokenized = _read_corpus(config, [folder], console, resumed=True)
    now, before = fingerprints_of(config, corpus, tokenized), read_fingerprints(folder)
    if before is not None:
        check_unchanged(folder, config, before, now)
    return PreparedRun(
        config=config, run=folder, corpus=tokenized, groups=[], record=None, fingerprints=before or now, resumed=True
    )


def _base_elsewhere(settings: Sequence[Setting]) -> dict[str, str]:
    """Where the run's base is now, if the settings say so; `check_base_model` compares it."""
    name = flatten(explicit_settings(settings)).get(MODEL)
    return {} if name is None else {MODEL: str(name)}


def _is_source(run: Folder, began: Source) -> bool:
    """Whether a run has what an `add` began with, wherever it is now. Its configuration may name other places since."""
    with gc_paused():
        from bora_sweep.trials.add import fingerprints_of_run
    before, now = ({path: digest for path, digest in files.items() if path != "config.yaml"}
                   for files in (began.fingerprints, fingerprints_of_run(run, began.trial_id)))  # fmt: skip
    return before == now


def _refuse_moves(settings: Sequence[Setting]) -> None:
    """Refuse keys that say which tasks a step moves: each of an `add` moves all of its tasks."""
    given = flatten(explicit_settings(settings))
    for key in ("train.update", "train.bank", "train.tasks_per_batch"):
        if key in given:
            raise InputError(
                f"{key}={given[key]}: each step of an add moves all of its tasks, on the device; drop it, and give "
                "thousands of new tasks in several files"
            )


def _check_trial(run: Folder, loaded: "LoadedTrial") -> None:
    """Refuse a trial under whose Theta and tau no task can be added."""
    method, trial_id = loaded.row["method"], loaded.row["trial_id"]
    if method not in METHODS:
        raise InputError(
            f"--trial {trial_id}: method={method} has no prior of its own that new tasks could be fitted under; name a "
            f"trial of {run} with method=map"
        )
    published = _published(loaded.config)
    if published is not None:
        raise InputError(
            f"{run}: {published} has another objective than Eq. 6, so that tau means something else there; add to a "
            "run without it"
        )


def _published(config: Config) -> str | None:
    """The first setting that makes another objective than the MAP of Eq. 6 per token, as `key=value`."""
    default = Config().train
    if config.prior.penalty != "squared":
        return f"prior.penalty={config.prior.penalty}"
    names = ("likelihood", "padding", "independent", "reported", "batches", "initial_noise", "task_weights")
    values = {name: getattr(config.train, name) for name in names}
    return next((f"train.{name}={value}" for name, value in values.items() if value != getattr(default, name)), None)


def config_to_add(loaded: "LoadedTrial", settings: Sequence[Setting] = ()) -> Config:
    """The configuration of an `add` to a trial, before the user's settings.

    The model, the adapters and the prior are the trial's, and so are the columns, templates and metrics. Coordinates
    are noncentered: with Theta held the posterior is the same. What the run chose of its own documents is left out, and
    so is a tau that its tasks have of their own. Epochs are counted anew, as one is no pass over the documents here.
    Gradients are not clipped: the prior is not, and where the two balance would no longer be the MAP.

    Args:
        loaded: The trial.
        settings: The user's; where they say which group a task is in, what the trial says of it is left out.
    """
    with gc_paused():
        from bora_sweep.model.base import base_name
    config, data = loaded.config, loaded.config.data
    if config.model.name is None:
        config = replace(config, model=replace(config.model, name=base_name(config.model, data)))
    is_file = data.kind in ("file", "hub")
    kept = {name: getattr(data, name) if is_file else default for name, default in COLUMNS.items()}
    kept |= groups_to_add(loaded, settings)
    kept |= {name: getattr(data, name) for name in (
        "min_characters", "max_characters", "train_fraction", "validation_fraction", "test_fraction", "keep_together",
        "seed", "prompt", "template", "truncate", "loss_on", "chat_template", "template_kwargs",
    )}  # fmt: skip
    train, is_second = config.train, config.method == ADD
    return replace(
        config,
        data=DataConfig(**kept, hold_out_from=data.hold_out_from if is_second else HOLD_OUT_FROM),
        prior=replace(config.prior, parametrization="noncentered", **tau_2_and_scales(config)),
        train=replace(
            train,
            learning_rate=config.learning_rate,
            lr_per_tau=None,
            solver=train.solver if config.prior.parametrization == "noncentered" else None,
            global_update="gradient",
            batch_size=train.batch_size if is_second else BATCH_SIZE,
            micro_batch_size=train.micro_batch_size or train.batch_size,
            max_grad_norm=train.max_grad_norm if is_second else None,
            update="all",
            bank="device",
            tasks_per_batch=None,
            pass_tokens=train.pass_tokens if isinstance(train.pass_tokens, int) else None,
            max_epochs=train.max_epochs if is_second else TrainConfig().max_epochs,
            patience=train.patience if is_second else TrainConfig().patience,
            compile=False,
            shard_base=False,
        ),
        search=SearchConfig(),
        ray=RayConfig(),
        method=ADD,
        init_from=None,
        tracking=None,
        output=None,
    )


def _check_settings(run: Folder, settings: Sequence[Setting], config: Config, defaults: Config) -> None:
    """Refuse settings that would change what the adapters mean, and those of a sweep."""
    given = flatten(explicit_settings(settings))
    before = flatten(defaults.to_dict())
    changed = {key: value for key, value in flatten(config.to_dict()).items() if value != before.get(key)}
    for key, value in sorted(changed.items(), key=lambda item: item[0] not in given):
        if key.partition(".")[0] in FIXED:
            raise InputError(f"{key}={value}: {run} has decided it ({before.get(key)}); drop it")
    if published := _published(config):
        raise InputError(f"{published}: has another objective than the fits of {run}; drop it")
    if config.data.path is None:
        raise InputError("add: name the file of the new documents after the run: add RUN FILE")
    if config.train.precision == "fp16":
        raise InputError("train.precision=fp16: tasks would share one loss scale; set train.precision=bf16 or no")


def _read_corpus(
    config: Config, known_from: Sequence[Folder], console: Console, *, resumed: bool = False
) -> tuple["Corpus", "TokenizedCorpus"]:
    """The new documents and their tokens; documents that the run knows stay in their splits."""
    with gc_paused():
        from bora_sweep.data.corpus import load_corpus
        from bora_sweep.data.known_documents import DOCUMENTS, record_folders
        from bora_sweep.data.tokens import token_notes, tokenize_for
        from bora_sweep.model.base import load_tokenizer
        from bora_sweep.train.metrics.functions import check_metrics

    check_metrics(config)
    recorded = [folder for folder in known_from if exists(folder / DOCUMENTS)]
    for folder in known_from:
        if folder not in recorded:
            print_notes([f"{folder}: does not say which documents it was trained on; some may be tested here"], console)
    known = recorded if resumed else [*recorded, *record_folders(config)]
    corpus = load_corpus(config.data, known, resumed=resumed, separate=True)
    tokenized = tokenize_for(config, corpus, load_tokenizer(config.model, config.data))
    print_notes([*corpus.notes, *token_notes(tokenized)], console)
    console.print(
        f"{escape(corpus.name)}: {plural(len(corpus.tasks), 'task')}, {plural(len(corpus.documents), 'document')}, "
        f"{tokenized.num_tokens('train'):,} tokens to train on"
    )
    return corpus, tokenized


def _check_tasks(run: Folder, loaded: "LoadedTrial", corpus: "Corpus", *, refresh: bool) -> list[str]:
    """The tasks that are fitted anew; refuses tasks that have an adapter already, unless they are to be."""
    from bora_sweep.data.known_documents import DOCUMENTS, read_documents

    known = [task for task in corpus.tasks if task in loaded.theta_of]
    record = read_documents(run) if exists(run / DOCUMENTS) else corpus.record.loc[corpus.record["carried"]]
    trained = set(record.loc[record["split"] == "train", "task"])
    elsewhere = [task for task in corpus.tasks if task in trained and task not in loaded.theta_of]
    if elsewhere:
        raise InputError(
            f"task {elsewhere[0]!r}{and_more(elsewhere)}: has an adapter in a run that {run} stands on; fit it anew "
            "by an add to that run with --refresh, or leave it out of the file"
        )
    if known and not refresh:
        raise InputError(
            f"task {known[0]!r}{and_more(known)}: has an adapter in {run} already; --refresh fits it anew, from "
            "there and by the documents of the file alone; or leave it out of the file"
        )
    return known


def _without_metrics(config: Config, corpus: "Corpus", console: Console) -> Config:
    """Without metrics where no document is held out that they could score."""
    if not config.metrics or set(corpus.documents["split"]) != {"train"}:
        return config
    print_notes([f"metrics={config.metrics}: no document is held out that they could score; dropped"], console)
    return replace(config, metrics=[], metric=MetricConfig())


def _notes(run: Folder, loaded: "LoadedTrial", corpus: "Corpus", refreshed: Sequence[str]) -> list[str]:
    """What the user should know of the trial, and of documents that are missing."""
    notes, tau, record = [], loaded.config.tau, corpus.record
    if math.isinf(tau):
        notes.append(f"trial {loaded.row['trial_id']} has tau = inf: nothing is trained, Theta serves the new tasks")
    if tau == 0:
        notes.append(
            f"trial {loaded.row['trial_id']} has tau = 0: there is no prior, and each new task is an independent fit"
        )
    is_missing = record["carried"] & (record["split"] == "train") & record["task"].isin(list(refreshed))
    missing = record["task"].to_numpy()[is_missing.to_numpy()]
    if len(missing):
        notes.append(
            f"{plural(len(missing), 'document')} that {run} trained on are not in the file, the first of task "
            f"{missing[0]!r}: an adapter that is fitted anew learns by the documents of the file alone"
        )
    return notes


def _foundation(run: Folder, loaded: "LoadedTrial", refreshed: Sequence[str]) -> "Foundation":
    from bora_sweep.trials.add import Foundation, fingerprints_of_run

    row = loaded.row
    source = Source(
        run=_address(run),
        trial_id=row["trial_id"],
        method=row["method"],
        tau=loaded.config.tau,
        refreshed=list(refreshed),
        fingerprints=fingerprints_of_run(run, row["trial_id"]),
    )
    about = {"lora": asdict(loaded.lora), "sites": [asdict(site) for site in loaded.layout.sites], "form": loaded.form}
    theta_of = {task: loaded.theta_of[task] for task in refreshed}
    theta_g = known_groups(loaded) if loaded.config.has_group_level else {}
    return Foundation(source, loaded.mean_P, theta_of, theta_g, {**about, "model": loaded.config.model.name})


def _address(run: Folder) -> str:
    """The run's folder, of this machine by its absolute path."""
    return str(run.absolute()) if isinstance(run, Path) else str(run)
