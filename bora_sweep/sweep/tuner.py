"""The sweep: trials on Ray Tune, results in the run's folder.

Tune places the trials, keeps their workers warm and takes crashed ones up again. What is true of a run is in the run's
own Parquet and checkpoints alone: nothing of Tune's state is ever read back, so that a resume unpickles nothing.
"""

import logging
import math
import os
import signal
import tempfile
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import ray
from ray import tune

from bora_sweep.config import Config
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.errors import InputError, one_line
from bora_sweep.results import read_trial_row, trial_rows, write_table
from bora_sweep.sweep.search import Known, TauSearch, num_trials, point_of
from bora_sweep.sweep.trial import tune_trial


def tune_run(config: Config, corpus: TokenizedCorpus, run: Path, callbacks: list[tune.Callback]) -> bool:
    """`bora_sweep.sweep.run_sweep`, with Tune's callbacks."""
    search = TauSearch(config, known_trials(run))
    with _ray(config), tempfile.TemporaryDirectory(prefix="bora-sweep-tune-") as scratch:
        slots = _concurrent_trials(config)
        with_corpus = tune.with_parameters(tune_trial, config=config, corpus=corpus, run=str(run.resolve()))
        resources = {"CPU": config.ray.cpus_per_trial, "GPU": config.ray.gpus_per_trial}
        tuner = tune.Tuner(
            tune.with_resources(with_corpus, resources),
            tune_config=tune.TuneConfig(
                search_alg=search, num_samples=-1, max_concurrent_trials=slots, reuse_actors=True
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=config.ray.max_failures),
                callbacks=callbacks,
            ),
        )
        grid = tuner.fit()
    for result in grid:
        if result.error is not None and result.config is not None:
            _mark(run, result.config["trial_id"], "failed", one_line(result.error))
    rows = trial_rows(run)
    for row in rows:
        if row["status"] == "running":
            _mark(run, row["trial_id"], "interrupted", None)
    ended = sum(row["status"] in ("finished", "failed") for row in rows)
    return ended == num_trials(config)


def known_trials(run: Path) -> dict[str, Known]:
    """What an earlier start of the sweep left in `run`."""
    return {
        row["trial_id"]: Known(point_of(row), row["status"] == "finished", _objective(row)) for row in trial_rows(run)
    }


def _objective(row: dict) -> float:
    """Validation nats per token."""
    tokens = row["validation_num_tokens"]
    return row["validation_nll_nats"] / tokens if tokens else math.nan


def _mark(run: Path, trial_id: str, status: str, error: str | None) -> None:
    """Set the status of a trial whose worker could not: it was killed, or told to stop."""
    row = read_trial_row(run, trial_id) or {}
    if row.get("status") not in ("finished", "failed"):
        row.update(status=status, error=error, ended_at=datetime.now(UTC))
        write_table(run, "trials", trial_id, [row])


@contextmanager
def _ray(config: Config):
    """A Ray for the sweep: the cluster at `ray.address`, else a private one that ends with it."""
    if ray.is_initialized():
        yield
        return
    local = config.ray.address is None
    umask = os.umask(0o077)  # Ray writes its token file readable to all otherwise
    previous = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address="local" if local else config.ray.address,
            include_dashboard=False if local else None,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
        )
        # Tune ends in order on SIGUSR1: with SIGTERM's own handler trials would not be told to stop.
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGUSR1))
        yield
    finally:
        os.umask(umask)
        with suppress(ValueError):
            signal.signal(signal.SIGTERM, previous)
        ray.shutdown()


def _concurrent_trials(config: Config) -> int:
    """Trials that run at once.

    Raises:
        InputError: The machine can never hold a single one; Tune would wait for ever.
    """
    there = ray.cluster_resources()
    wanted = {"CPU": config.ray.cpus_per_trial, "GPU": config.ray.gpus_per_trial}
    room = min(int(there.get(name, 0) / amount) for name, amount in wanted.items() if amount > 0)
    if room == 0 and config.ray.address is None:
        short = next(name for name, amount in wanted.items() if amount > there.get(name, 0))
        key = f"ray.{short.lower()}s_per_trial"
        raise InputError(f"{key}={wanted[short]:g}: this machine has {there.get(short, 0):g} {short}; lower {key}")
    return config.ray.max_concurrent or max(room, 1)
