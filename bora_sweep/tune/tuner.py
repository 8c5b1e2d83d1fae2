"""The sweep: trials on Ray Tune, results in the run's folder.

Tune places the trials, keeps their workers warm and restarts crashed ones. The run's own Parquet and checkpoints are
the only state: nothing of Tune's is ever read back, so a resume unpickles nothing.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray import tune

from bora_sweep.config import Config
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.errors import one_line
from bora_sweep.process import defer_signals
from bora_sweep.runs.folder import create_run
from bora_sweep.runs.requests import STOP_FILE, asked_to_try
from bora_sweep.runs.results import SCHEMAS, objective, read_trial_row, trial_rows, write_table
from bora_sweep.runs.storage import Folder, exists, list_files, remove, write_bytes
from bora_sweep.trials.rows import initial_row
from bora_sweep.tune.cluster import num_concurrent, process_resources, ray_cluster
from bora_sweep.tune.inbox import Inbox
from bora_sweep.tune.live_view import SweepView
from bora_sweep.tune.points import ENDED, EarlierTrial, Point, point_of, trial_config
from bora_sweep.tune.ray_patches import patch_worker_failures
from bora_sweep.tune.scheduler import EarlyStopping
from bora_sweep.tune.search import TauSearch
from bora_sweep.tune.study import StudyMirror
from bora_sweep.tune.unseen import fit_unseen
from bora_sweep.tune.worker import trainable, with_measured
from bora_sweep.tune.worker_group import placement_group


def run_tuner(config: Config, corpus: TokenizedCorpus, run: Folder, groups: Sequence[str], view: SweepView) -> bool:
    """`bora_sweep.tune.run_sweep`, shown by `view`."""
    _remove_leftovers(run)
    with ray_cluster(config), tempfile.TemporaryDirectory(prefix="bora-sweep-tune-") as scratch:
        resources = process_resources(config)
        at_once = num_concurrent(config, resources)
        measured = _with_measured(config, corpus, run, resources, view)
        if measured is None:
            return False
        config = measured
        mirror = StudyMirror(run, config, groups, view.rows)

        def stop() -> None:
            search.is_stopping = True
            write_bytes(run / STOP_FILE, b"")
            view.print_stopping()

        search = TauSearch(
            config, earlier_trials(run), at_once, groups, numbering=view.numbering,
            before_suggest=Inbox(run, stop, view.renumber), note=view.console.print,
        )  # fmt: skip

        tuner = tune.Tuner(
            tune.with_resources(
                _with_arguments(config, corpus, run), placement_group(resources, config.ray.workers_per_trial)
            ),
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=None if config.search.scheduler == "none" else EarlyStopping(config, run),
                num_samples=-1,
                max_concurrent_trials=at_once,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=config.ray.max_failures),
                callbacks=[view, mirror],  # in this order: the mirror reads the rows that the view updates
            ),
        )
        given_up = _fit_all(tuner, run, stop)
        for params, error in given_up:
            mark_failed(run, config, params, error)
        rows = trial_rows(run)
        mirror.close(rows)
        num_ended = sum(row["status"] in ENDED for row in rows)
        is_complete = num_ended == view.total or (config.search.mode == "path" and _path_failed(rows))
        if is_complete and config.search.unseen_folds is not None:
            asked = {"resources": resources, "at_once": at_once}
            is_complete = fit_unseen(config, corpus, _address(run), **asked, console=view.console, stop=stop)
        for _, tau in asked_to_try(run):
            view.console.print(f"tau = {tau:g} was asked for too late; --resume fits it")
    return is_complete


def _fit_all(tuner: tune.Tuner, run: Folder, stop: Callable[[], None]) -> list[tuple[dict[str, Any], Exception]]:
    """Run Tune to its end, or until a signal calls `stop`.

    Returns:
        The fits that Tune gave up, and the error of each.
    """
    try:
        with defer_signals(stop), patch_worker_failures(run) as given_up:
            tuner.fit()
    finally:
        _mark_interrupted(run)
    return given_up


def _with_arguments(config: Config, corpus: TokenizedCorpus, run: Folder) -> Callable[[dict[str, Any]], None]:
    """The trainable with all arguments but those that the search suggests."""
    umask = os.umask(0)
    os.umask(umask)
    return tune.with_parameters(trainable, config=config, corpus=corpus, run=_address(run), umask=umask)


def _with_measured(
    config: Config, corpus: TokenizedCorpus, run: Folder, resources: dict[str, float], view: SweepView
) -> Config | None:
    """With numbers where settings are `auto`: measured where trials run, and written into the run's configuration.

    None where the run is to stop; what was not measured to its end is measured anew when the run is resumed.
    """
    if "auto" not in (config.search.pack, config.train.pass_tokens, config.train.learning_rate):
        return config

    def stop() -> None:
        write_bytes(run / STOP_FILE, b"")
        view.console.print("stopping after this step … (Ctrl-C again to stop at once)")

    measure = ray.remote(with_measured).options(num_cpus=resources["CPU"], num_gpus=resources["GPU"])
    with defer_signals(stop):
        measured = ray.get(measure.remote(config, corpus, _address(run), config.search.num_trials + 1))
    if measured is None:
        return None
    config, notes = measured
    for note in notes:
        view.console.print(note)
    create_run(config, run)
    return None if exists(run / STOP_FILE) else config


def _address(run: Folder) -> str:
    """The folder as any process finds it."""
    return str(run.resolve() if isinstance(run, Path) else run)


def _remove_leftovers(run: Folder) -> None:
    """Remove files of an earlier start that were not written whole."""
    for table in SCHEMAS:
        for part in list_files(run / "results" / table, ".*.parquet.*.part"):
            remove(part)


def earlier_trials(run: Folder) -> dict[str, EarlierTrial]:
    """What an earlier start of the sweep wrote in `run`, by trial id; the values within a path are left out."""
    return {
        row["trial_id"]: EarlierTrial(point, row["status"] == "finished", objective(row))
        for row in trial_rows(run)
        if (point := point_of(row)) is not None
    }


def _path_failed(rows: list[dict[str, Any]]) -> bool:
    """Whether a path failed: it ends with its first value that fails, and never starts those after it."""
    return any(row["status"] == "failed" for row in rows) and not any(row["status"] == "interrupted" for row in rows)


def mark_failed(run: Folder, config: Config, params: dict[str, Any], error: Exception) -> None:
    """Mark a trial as failed whose worker could not: it was killed, maybe before it wrote a first row.

    Args:
        run: The run's folder.
        config: The sweep's configuration.
        params: The fit as `TauSearch.suggest` returned it.
        error: The reason, unless the row has one already.
    """
    row = read_trial_row(run, params["trial_id"])
    if row is None:
        fit_config = trial_config(config, Point(**params["point"]), params["seed_index"])
        row = {**initial_row(fit_config), "trial_id": params["trial_id"], "started_from": params["start"]}
    if row["status"] != "finished":
        _write_end(run, row, "failed", row.get("error") or one_line(error))


def _mark_interrupted(run: Folder) -> None:
    """Mark the trials that no worker works on any more."""
    for row in trial_rows(run):
        if row["status"] == "running":
            _write_end(run, row, "interrupted", row["error"])


def _write_end(run: Folder, row: dict[str, Any], status: str, error: str | None) -> None:
    row.update(status=status, error=error, ended_at=datetime.now(UTC))
    write_table(run, "trials", row["trial_id"], [row])
