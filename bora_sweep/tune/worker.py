"""One trial as Ray Tune runs it: a worker process fits, reports each epoch, and keeps its base model for the next."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

from bora_sweep.process import gc_paused

with gc_paused():  # imports take most of a worker's time before its first trial
    import torch
    from ray import tune
    from transformers import PreTrainedModel

    from bora_sweep.config import Config, DataConfig, ModelConfig, with_values
    from bora_sweep.data.tokens import TokenizedCorpus
    from bora_sweep.errors import InputError
    from bora_sweep.model.base import load_base
    from bora_sweep.process import Interrupted
    from bora_sweep.runs.results import objective, read_trial_row, write_table
    from bora_sweep.runs.storage import Folder, exists, folder_at
    from bora_sweep.train.state import State, no_op
    from bora_sweep.trials.fingerprints import check_base_model
    from bora_sweep.trials.pack_size import choose_pack
    from bora_sweep.trials.pass_cost import about_pass, with_measured_pass
    from bora_sweep.trials.path import run_path
    from bora_sweep.trials.rate_test import with_chosen_rate
    from bora_sweep.trials.trial import Trial, run_pack
    from bora_sweep.tune.gpu_share import limit_gpu_memory
    from bora_sweep.tune.points import Point, trial_config
    from bora_sweep.tune.scheduler import EARLY_STOP_FILE
    from bora_sweep.tune.watchdog import StopCheck, watchdog
    from bora_sweep.tune.worker_group import run_in_group

REPORT_SECONDS = 30.0
"""Between two reports to Tune: a fit waits for each, and the driver shares its machine."""


def trainable(params: dict[str, Any], config: Config, corpus: TokenizedCorpus, run: str, umask: int) -> None:
    """Fit what Tune asks for, and report to it on the way and at the end.

    A fit whose input is wrong cannot succeed at a second try: it is reported without an objective and ends, as does a
    fit of a run that is to stop. Any other error is raised, and Tune resumes the trial from its checkpoints.

    Args:
        params: The pack that `TauSearch.suggest` returned.
        config: The sweep's configuration.
        corpus: Of all tasks.
        run: Path or address of the run's folder.
        umask: The driver's; that of Ray's processes is narrower.
    """
    os.umask(umask)
    folder = folder_at(run)
    check_stop = StopCheck(folder)

    def record_error(reason: str) -> None:
        for fit in params["fits"]:
            _record_error(folder, fit["trial_id"], reason)

    def fit() -> dict[str, dict[str, Any]]:
        return fit_trials(params, config, corpus, folder, check_stop=check_stop, on_epoch=report)

    report = _make_report(config, folder, params["fits"][0]["trial_id"])
    try:
        with watchdog(check_stop, config.ray.trial_timeout, record_error):
            check_stop()
            rows = run_in_group(
                config.ray.workers_per_trial,
                first=fit,
                others=_fit_beside_first,
                arguments=(params, config, corpus, run),
                on_lost=record_error,
            )
    except (InputError, Interrupted):
        rows = {}
    tune.report({"objectives": {trial_id: objective(row) for trial_id, row in rows.items()}})


def _fit_beside_first(params: dict[str, Any], config: Config, corpus: TokenizedCorpus, run: str) -> None:
    """The work of a trial's other processes, if it has any."""
    folder = folder_at(run)
    with suppress(InputError, Interrupted):  # the first process reports these
        fit_trials(params, config, corpus, folder, check_stop=StopCheck(folder), on_epoch=no_op)


def _make_report(config: Config, run: Folder, trial_id: str) -> Callable[[State], None]:
    """A function that reports an epoch to Tune: now and then, or each one where a scheduler may stop the fit."""
    reported_at = time.monotonic()

    def report(state: State) -> None:
        nonlocal reported_at
        scheduler = config.search.scheduler
        if scheduler == "none" and time.monotonic() - reported_at < REPORT_SECONDS:
            return
        tune.report({"epoch": state.epoch, "validation_nll_nats": state.validation_nats})
        reported_at = time.monotonic()
        if scheduler != "none" and exists(run / "trials" / trial_id / EARLY_STOP_FILE):
            state.stopped = scheduler

    return report


def fit_trials(
    params: dict[str, Any],
    config: Config,
    corpus: TokenizedCorpus,
    run: Folder,
    *,
    check_stop: Callable[[], None],
    on_epoch: Callable[[State], None],
) -> dict[str, dict[str, Any]]:
    """Fit the trials of a pack, or a path.

    Args:
        params: The pack that `TauSearch.suggest` returned.
        config: The sweep's configuration.
        corpus: Of all tasks.
        run: The run's folder.
        check_stop: Called between any two steps.
        on_epoch: Called after each epoch.

    Returns:
        Each trial's row of `trials`; of a path the row of its best value.
    """
    torch.set_num_threads(max(1, int(config.ray.cpus_per_trial)))
    limit_gpu_memory(config)
    trials = [
        Trial(fit["trial_id"], trial_config(config, Point(**fit["point"]), fit["seed_index"]), fit["start"])
        for fit in params["fits"]
    ]

    def load() -> PreTrainedModel:
        return cached_base(config.model, config.data, str(run))

    if params["fits"][0]["point"]["method"] != "path":
        return run_pack(trials, corpus, load, run, on_epoch=on_epoch, check_stop=check_stop)
    (first,) = trials
    path = run_path(first.config, corpus, load, run, first.trial_id, on_epoch=on_epoch, check_stop=check_stop)
    return {first.trial_id: min(path, key=objective)}


def _record_error(run: Folder, trial_id: str, reason: str) -> None:
    """Write into a trial's row why its worker is about to end, or has ended."""
    row = read_trial_row(run, trial_id)
    if row is not None and row["status"] in ("running", "failed"):
        write_table(run, "trials", trial_id, [{**row, "error": reason}])


def with_measured(config: Config, corpus: TokenizedCorpus, run: str, most: int) -> tuple[Config, list[str]] | None:
    """The configuration with numbers where it has `auto`, for the machine that runs this, and what to say of them.

    None where the run is to stop: Ray would take `Interrupted`, were it raised, for the end of the process.

    Args:
        config: The sweep's; `train.pass_tokens`, `train.learning_rate` and `search.pack` may be `auto`.
        corpus: Of all tasks.
        run: Path or address of the run's folder.
        most: Fits that could run at once.
    """
    torch.set_num_threads(max(1, int(config.ray.cpus_per_trial)))
    limit_gpu_memory(config)
    base = cached_base(config.model, config.data, run)
    check_stop, notes = StopCheck(folder_at(run)), []
    if config.train.pass_tokens == "auto":
        config = with_measured_pass(config, corpus, base)
        notes.append(about_pass(config))
    if config.train.learning_rate == "auto":
        try:
            config, about_rate = with_chosen_rate(config, corpus, base, check_stop)
        except Interrupted:
            return None
        notes.append(about_rate)
    if config.search.pack == "auto":
        config = with_values(config, search={"pack": choose_pack(config, corpus, base, most)})
    return config, notes


@lru_cache(maxsize=1)
def cached_base(model: ModelConfig, data: DataConfig, run: str) -> PreTrainedModel:
    """The base model of the run, loaded once per worker process: the trials of a sweep share it.

    Args:
        model: Names the base.
        data: Names the embedded base, if there is no other.
        run: Path or address of the run's folder.

    Raises:
        InputError: Another base model is at its path on this machine.
    """
    check_base_model(folder_at(run), model, data)
    return load_base(model, data)
