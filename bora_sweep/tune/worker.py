"""One trial as Ray Tune runs it: a worker process that fits, reports each epoch, and stays warm for the next."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

from bora_sweep.process import gc_paused

with gc_paused():  # most of what a worker does before its first trial
    import torch
    from ray import tune
    from transformers import PreTrainedModel

    from bora_sweep.config import Config, DataConfig, ModelConfig
    from bora_sweep.data.tokens import TokenizedCorpus
    from bora_sweep.errors import InputError
    from bora_sweep.model.base import load_base
    from bora_sweep.process import Interrupted
    from bora_sweep.runs.results import objective, read_trial_row, write_table
    from bora_sweep.runs.storage import Folder, exists, folder_at
    from bora_sweep.train.state import State, no_op
    from bora_sweep.trials.fingerprints import check_base_model
    from bora_sweep.trials.pack_size import choose_pack
    from bora_sweep.trials.path import run_path
    from bora_sweep.trials.trial import Trial, run_pack
    from bora_sweep.tune.points import Point, trial_config
    from bora_sweep.tune.scheduler import VERDICT
    from bora_sweep.tune.watchdog import StopCheck, watched
    from bora_sweep.tune.worker_group import run_together

REPORT_SECONDS = 30.0  # between two reports to Tune: a fit waits for each, and the driver shares its machine


def tune_trial(params: dict[str, Any], config: Config, corpus: TokenizedCorpus, run: str, umask: int) -> None:
    """Fit what `params` (of `TauSearch.suggest`) says, and report to Tune on the way and at the end.

    Fits whose input is wrong cannot succeed by trying again: they are reported without an objective and end there, as
    do those of a run that is to stop; any other error is raised, so that Tune takes the trial up again from its
    checkpoints.
    """
    os.umask(umask)  # the driver's: Ray's processes have a narrower one
    place = folder_at(run)
    check_stop = StopCheck(place)

    def note(reason: str) -> None:
        for fit in params["fits"]:
            _note_error(place, fit["trial_id"], reason)

    report = _reporter(config, place, params["fits"][0]["trial_id"])

    def fit() -> dict[str, dict[str, Any]]:
        return _fit(params, config, corpus, place, check_stop, report)

    try:
        with watched(check_stop, config.ray.trial_timeout, note):
            check_stop()
            rows = run_together(config.ray, fit, note, _help_fit, params, config, corpus, run)
    except (InputError, Interrupted):
        rows = {}
    tune.report({"objectives": {trial_id: objective(row) for trial_id, row in rows.items()}})


def _help_fit(params: dict[str, Any], config: Config, corpus: TokenizedCorpus, run: str) -> None:
    """What the other processes of a trial do, if it has any."""
    place = folder_at(run)
    with suppress(InputError, Interrupted):  # the first says so
        _fit(params, config, corpus, place, StopCheck(place), no_op)


def _reporter(config: Config, run: Folder, trial_id: str) -> Callable[[State], None]:
    """Tells Tune how a fit stands: now and then, or after each epoch where a scheduler asks, whose verdict it reads."""
    reported_at = time.monotonic()

    def report(state: State) -> None:
        nonlocal reported_at
        scheduler = config.search.scheduler
        if scheduler == "none" and time.monotonic() - reported_at < REPORT_SECONDS:
            return
        tune.report({"epoch": state.epoch, "objective": sum(state.best_nll_nats)})
        reported_at = time.monotonic()
        if scheduler != "none" and exists(run / "trials" / trial_id / VERDICT):
            state.stopped = scheduler

    return report


def _fit(
    params: dict[str, Any],
    config: Config,
    corpus: TokenizedCorpus,
    run: Folder,
    check_stop: StopCheck,
    on_epoch: Callable[[State], None],
) -> dict[str, dict[str, Any]]:
    """Each trial's row; of a path that of its best value."""
    torch.set_num_threads(max(1, int(config.ray.cpus_per_trial)))
    trials = [
        Trial(fit["trial_id"], trial_config(config, Point(**fit["point"]), fit["seed_index"]), fit["start"])
        for fit in params["fits"]
    ]

    def warm_base() -> PreTrainedModel:
        return _warm_base(config.model, config.data, str(run))

    if params["fits"][0]["point"]["method"] != "path":
        return run_pack(trials, corpus, warm_base, run, on_epoch=on_epoch, check_stop=check_stop)
    (head,) = trials
    path = run_path(head.config, corpus, warm_base, run, head.trial_id, on_epoch=on_epoch, check_stop=check_stop)
    return {head.trial_id: min(path, key=lambda row: row["validation_perplexity"])}


def _note_error(run: Folder, trial_id: str, reason: str) -> None:
    """Say in its row why a trial's worker is about to end, or has."""
    row = read_trial_row(run, trial_id)
    if row is not None and row["status"] in ("running", "failed"):
        write_table(run, "trials", trial_id, [{**row, "error": reason}])


def measure_pack(config: Config, corpus: TokenizedCorpus, run: str, most: int) -> int:
    """`search.pack` where it is `auto`, for the place where this runs."""
    torch.set_num_threads(max(1, int(config.ray.cpus_per_trial)))
    return choose_pack(config, corpus, _warm_base(config.model, config.data, run), most)


@lru_cache(maxsize=1)
def _warm_base(model: ModelConfig, data: DataConfig, run: str) -> PreTrainedModel:
    """The base model of the run, loaded once per worker process: the trials of a sweep share it.

    Raises:
        InputError: Where this process runs another lies at its path.
    """
    check_base_model(folder_at(run), model, data)
    return load_base(model, data)
