"""The sweep: trials on Ray Tune, results in the run's folder.

Tune places the trials, keeps their workers warm and takes crashed ones up again. What is true of a run is in the run's
own Parquet and checkpoints alone: nothing of Tune's state is ever read back, so that a resume unpickles nothing.
"""

import os
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray import tune

from bora_sweep.config import Config, with_values
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.errors import one_line
from bora_sweep.process import defer_signals
from bora_sweep.runs.folder import create_run
from bora_sweep.runs.results import SCHEMAS, objective, read_trial_row, trial_rows, write_table
from bora_sweep.runs.storage import Folder, list_files, remove, write_bytes
from bora_sweep.trials.rows import initial_row
from bora_sweep.tune.cluster import _ray, _resources, num_concurrent
from bora_sweep.tune.live_view import SweepView
from bora_sweep.tune.points import Known, Point, num_trials, point_of, trial_config
from bora_sweep.tune.ray_patches import _started_workers, patch_worker_failures
from bora_sweep.tune.scheduler import EarlyStopping
from bora_sweep.tune.search import TauSearch
from bora_sweep.tune.study import StudyMirror
from bora_sweep.tune.watchdog import STOP
from bora_sweep.tune.worker import measure_pack, tune_trial
from bora_sweep.tune.worker_group import reserved


def tune_run(config: Config, corpus: TokenizedCorpus, run: Folder, groups: Sequence[str], view: SweepView) -> bool:
    """`bora_sweep.tune.run_sweep`, shown by `view`."""
    _clear(run)
    with _ray(config), tempfile.TemporaryDirectory(prefix="bora-sweep-tune-") as scratch:
        resources = _resources(config)
        specs, workers = num_concurrent(config, resources), config.ray.workers_per_trial
        config = _with_measured_pack(config, corpus, run, resources)
        search = TauSearch(config, finished_points(run), specs, groups)
        mirror = StudyMirror(run, config, groups, view.rows)
        umask = os.umask(0)
        os.umask(umask)
        place = run.resolve() if isinstance(run, Path) else run
        shared = {"config": config, "corpus": corpus, "run": str(place), "umask": umask}
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(tune_trial, **shared), reserved(resources, workers)),
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=None if config.search.scheduler == "none" else EarlyStopping(config, run),
                num_samples=-1,
                max_concurrent_trials=specs,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=config.ray.max_failures),
                callbacks=[view, mirror],  # the mirror reads the rows that the view keeps
            ),
        )

        def stop() -> None:
            search.is_stopping = True
            write_bytes(run / STOP, b"")
            view.say_stopping()

        try:
            with defer_signals(stop), _started_workers(), patch_worker_failures(run) as given_up:
                tuner.fit()
        finally:
            _close_running(run)
    for params, error in given_up:
        _mark_dead(run, config, params, error)
    rows = trial_rows(run)
    mirror.close(rows)
    ended = sum(row["status"] in ("finished", "failed") for row in rows)
    return ended == num_trials(config) or (config.search.mode == "path" and _has_failed(rows))


def _clear(run: Folder) -> None:
    """Away with what an earlier start left half done: a wish to stop, files that were not whole yet."""
    remove(run / STOP)
    for table in SCHEMAS:
        for part in list_files(run / "results" / table, ".*.parquet.*.part"):
            remove(part)


def _has_failed(rows: list[dict[str, Any]]) -> bool:
    """A path ends with its first value that fails: those after it are never begun."""
    return any(row["status"] == "failed" for row in rows) and not any(row["status"] == "interrupted" for row in rows)


def finished_points(run: Folder) -> dict[str, Known]:
    """What an earlier start of the sweep left in `run`."""
    return {
        row["trial_id"]: Known(point, row["status"] == "finished", objective(row))
        for row in trial_rows(run)
        if (point := point_of(row)) is not None
    }


def _mark_dead(run: Folder, config: Config, params: dict[str, Any], error: Exception) -> None:
    """Mark a trial as failed whose worker could not: it was killed, maybe before it wrote a first row."""
    row = read_trial_row(run, params["trial_id"])
    if row is None:
        own = trial_config(config, Point(**params["point"]), params["seed_index"])
        row = {**initial_row(own), "trial_id": params["trial_id"], "started_from": params["start"]}
    if row["status"] != "finished":
        _close(run, row, "failed", row.get("error") or one_line(error))


def _close_running(run: Folder) -> None:
    """Trials that no worker works on any more."""
    for row in trial_rows(run):
        if row["status"] == "running":
            _close(run, row, "interrupted", row["error"])


def _close(run: Folder, row: dict[str, Any], status: str, error: str | None) -> None:
    row.update(status=status, error=error, ended_at=datetime.now(UTC))
    write_table(run, "trials", row["trial_id"], [row])


def _with_measured_pack(config: Config, corpus: TokenizedCorpus, run: Folder, resources: dict[str, float]) -> Config:
    """`search.pack` as a number: `auto` is measured where trials run, and the run's configuration then says what."""
    if config.search.pack != "auto":
        return config
    measured = ray.remote(measure_pack).options(num_cpus=resources["CPU"], num_gpus=resources["GPU"])
    place = run.resolve() if isinstance(run, Path) else run
    pack = ray.get(measured.remote(config, corpus, str(place), config.search.num_trials + 1))
    config = with_values(config, search={"pack": pack})
    create_run(config, run)
    return config
