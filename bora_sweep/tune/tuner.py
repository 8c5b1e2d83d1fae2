"""The sweep: trials on Ray Tune, results in the run's folder.

Tune places the trials, keeps their workers warm and takes crashed ones up again. What is true of a run is in the run's
own Parquet and checkpoints alone: nothing of Tune's state is ever read back, so that a resume unpickles nothing.
"""

import logging
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.execution import class_cache

from bora_sweep.config import Config, with_values
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.errors import InputError, one_line
from bora_sweep.interrupt import noting_signals
from bora_sweep.results import SCHEMAS, objective, read_trial_row, trial_rows, write_table
from bora_sweep.runs import create_run
from bora_sweep.storage import Folder, listed, remove, write_bytes
from bora_sweep.train.rows import opening_row
from bora_sweep.tune.crew import reserved
from bora_sweep.tune.losses import each_loss_is_one_failure
from bora_sweep.tune.mirror import StudyMirror
from bora_sweep.tune.place import keep_secret, ray_folder, refuse_shadows
from bora_sweep.tune.points import Known, Point, num_trials, point_of, trial_config
from bora_sweep.tune.scheduler import Verdicts
from bora_sweep.tune.search import TauSearch
from bora_sweep.tune.trial import measure_pack, tune_trial
from bora_sweep.tune.view import SweepView
from bora_sweep.tune.worker import STOP

KNOCK_SECONDS = 20.0  # for an answer at `ray.address`


def tune_run(config: Config, corpus: TokenizedCorpus, run: Folder, groups: Sequence[str], view: SweepView) -> bool:
    """`bora_sweep.tune.run_sweep`, shown by `view`."""
    _clear(run)
    with _ray(config), tempfile.TemporaryDirectory(prefix="bora-sweep-tune-") as scratch:
        resources = _resources(config)
        slots, workers = _slots(config, resources), config.ray.workers_per_trial
        config = _with_pack(config, corpus, run, resources)
        search = TauSearch(config, known_trials(run), slots, groups)
        mirror = StudyMirror(run, config, groups, view.rows)
        umask = os.umask(0)
        os.umask(umask)
        place = run.resolve() if isinstance(run, Path) else run
        shared = {"config": config, "corpus": corpus, "run": str(place), "umask": umask}
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(tune_trial, **shared), reserved(resources, workers)),
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=None if config.search.scheduler == "none" else Verdicts(config, run),
                num_samples=-1,
                max_concurrent_trials=slots,
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
            with noting_signals(stop), _started_workers(), each_loss_is_one_failure(run) as given_up:
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
        for part in listed(run / "results" / table, ".*.parquet.*.part"):
            remove(part)


def _has_failed(rows: list[dict[str, Any]]) -> bool:
    """A path ends with its first value that fails: those after it are never begun."""
    return any(row["status"] == "failed" for row in rows) and not any(row["status"] == "interrupted" for row in rows)


def known_trials(run: Folder) -> dict[str, Known]:
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
        row = {**opening_row(own), "trial_id": params["trial_id"], "started_from": params["start"]}
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


def _with_pack(config: Config, corpus: TokenizedCorpus, run: Folder, resources: dict[str, float]) -> Config:
    """`search.pack` as a number: `auto` is measured where trials run, and the run's configuration then says what."""
    if config.search.pack != "auto":
        return config
    measured = ray.remote(measure_pack).options(num_cpus=resources["CPU"], num_gpus=resources["GPU"])
    place = run.resolve() if isinstance(run, Path) else run
    pack = ray.get(measured.remote(config, corpus, str(place), config.search.num_trials + 1))
    config = with_values(config, search={"pack": pack})
    create_run(config, run)
    return config


@contextmanager
def _started_workers() -> Iterator[None]:
    """Within, trials go to the workers that Ray starts ahead: for a variable of Lightning's Tune would have others."""
    variables = class_cache.DEFAULT_ENV_VARS.copy()
    class_cache.DEFAULT_ENV_VARS.clear()
    try:
        yield
    finally:
        class_cache.DEFAULT_ENV_VARS.update(variables)


@contextmanager
def _ray(config: Config):
    """A Ray for the sweep: the cluster at `ray.address`, else a private one that ends with it."""
    if ray.is_initialized():
        yield
        return
    refuse_shadows()
    with ExitStack() as stack:
        folder = None if config.ray.address is not None else stack.enter_context(ray_folder())
        stack.callback(ray.shutdown)
        umask = os.umask(0o077)  # Ray writes its token file readable to all otherwise
        try:
            _start(folder) if folder is not None else _connect(str(config.ray.address))
        finally:
            os.umask(umask)
        yield


def _start(folder: str) -> None:
    keep_secret()
    try:
        ray.init(
            "local", include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL, _temp_dir=folder
        )
    except Exception as error:
        raise InputError(
            f"Ray does not start on this machine ({one_line(error, limit=300)}); it keeps its files in {folder}, which "
            "RAY_TMPDIR moves"
        ) from error


def _connect(address: str) -> None:
    _refuse_silent(address)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, ValueError) as error:
        raise InputError(
            f"ray.address={address}: no Ray answers there ({one_line(error, limit=200)}); is it up, and if it asks for "
            "a token, is RAY_AUTH_MODE=token exported here?"
        ) from error


def _refuse_silent(address: str) -> None:
    """Refuse an address at which nothing listens: Ray would ask it again for a quarter of an hour.

    Raises:
        InputError: Nothing listens there.
    """
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit() and "/" not in host):
        return
    try:
        socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()
    except OSError as error:
        raise InputError(
            f"ray.address={address}: nothing listens there ({error}); is that Ray up, and reached from here?"
        ) from error


def _resources(config: Config) -> dict[str, float]:
    """What one process of a trial reserves."""
    gpus = config.ray.gpus_per_trial
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0
    return {"CPU": config.ray.cpus_per_trial, "GPU": gpus}


def _slots(config: Config, resources: dict[str, float]) -> int:
    """Trials that run at once.

    Raises:
        InputError: The nodes that are there can never hold a single one, and none is said to come: Tune would wait for
            ever.
    """
    workers = config.ray.workers_per_trial
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needed = {name: amount for name, amount in resources.items() if amount > 0}
    processes = sum(min(int(node.get(name, 0) / amount) for name, amount in needed.items()) for node in nodes)
    room = processes // workers
    if room:
        return config.ray.max_concurrent or room
    if config.ray.address is not None and config.ray.max_concurrent is not None:
        return config.ray.max_concurrent
    asked = ", ".join(f"ray.{name.lower()}s_per_trial={amount:g}" for name, amount in needed.items())
    if workers > 1:
        asked = f"ray.workers_per_trial={workers}, {asked}"
    most = ", ".join(f"{max(node.get(name, 0) for node in nodes):g} {name}" for name in needed)
    if config.ray.address is None:
        raise InputError(f"{asked}: this machine has {most}; lower what it lacks")
    raise InputError(
        f"{asked}: no node at ray.address={config.ray.address} holds that, the most there is {most}; lower what it "
        "lacks, or, where an autoscaler will start such nodes, say by ray.max_concurrent how many trials run at once"
    )
