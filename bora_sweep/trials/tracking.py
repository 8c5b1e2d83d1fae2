"""A trial's curves in an experiment tracker, through Accelerate: one tracker run for each trial, named by its id.

An Accelerator's trackers last as long as its process. But a warm worker fits one trial after another, and a pack
several at once. So each trial has a tracker of its own, opened at its first epoch and closed at its end. It logs the
rows of `curves`. A trial that resumes goes on, and logs no epoch twice.
"""

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from accelerate import tracking

from bora_sweep.config import Config, flatten
from bora_sweep.errors import InputError, one_line, redact
from bora_sweep.runs.results import perplexity
from bora_sweep.runs.storage import Folder, read_bytes, write_bytes

FOLDER = "tracking"
PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "mlflow": ("mlflow",), "wandb": ("wandb",)}
"""Packages of each tracker, of which one must be installed."""

Row = dict[str, Any]


class Sink(Protocol):
    """One tracker's run for one trial."""

    def log(self, epochs: dict[int, dict[str, float]]) -> None:
        """Show the values of these epochs."""

    def finish(self) -> None:
        """Close it."""


class Tracker:
    """Logs a trial's curves to the tracker `config.tracking`, if any. A tracker that fails does not end the fit.

    Args:
        config: The trial's.
        run: The run's folder; files go to `tracking/` in it.
        trial_id: The trial.
    """

    def __init__(self, config: Config, run: Folder, trial_id: str) -> None:
        self.config, self.run, self.trial_id = config, run, trial_id
        self.is_on, self.shown = config.tracking is not None, -1
        self.sink: Sink | None = None

    def write(self, curve: Sequence[Row]) -> str | None:
        """Log the new epochs of `curve`. Returns the error, the first time that there is one."""
        if not self.is_on:
            return None
        try:
            if self.sink is None:
                self.sink = SINKS[str(self.config.tracking)](self.config, self.run, self.trial_id)
            new = {epoch: values for epoch, values in scalars(curve).items() if epoch > self.shown}
            if new:
                self.sink.log(new)
                self.shown = max(new)
        except Exception as error:
            self.is_on = False
            return f"tracking={self.config.tracking} ended: {one_line(error, limit=200)}"
        return None

    def finish(self) -> None:
        """Close the tracker's run."""
        if self.sink is not None:
            with suppress(Exception):
                self.sink.finish()
        self.is_on = False


def scalars(curve: Sequence[Row]) -> dict[int, dict[str, float]]:
    """The logged values of each epoch: nats per token and perplexity of both splits, log prior, learning rate."""
    shown: dict[int, dict[str, float]] = {}
    for row in curve:
        values, tokens = shown.setdefault(row["epoch"], {}), row["num_tokens"]
        values[f"{row['split']}/nats_per_token"] = row["nll_nats"] / tokens if tokens else math.nan
        values[f"{row['split']}/perplexity"] = perplexity(row["nll_nats"], tokens)
        values |= {name: row[name] for name in ("log_prior", "learning_rate") if row.get(name) is not None}
    return {
        epoch: {name: float(value) for name, value in values.items() if math.isfinite(value)}
        for epoch, values in shown.items()
    }


class _TensorBoard:
    """Event files in `tracking/TRIAL/`: those of an earlier try go, for the curve begins at its first epoch again."""

    def __init__(self, config: Config, run: Folder, trial_id: str) -> None:
        folder = Path(str(run)) / FOLDER
        for older in (folder / trial_id).glob("events.out.tfevents.*"):
            older.unlink()
        self.tracker = tracking.TensorBoardTracker(trial_id, folder)
        self.tracker.start()
        self.tracker.log({"config": re.sub("^", "    ", redact(config.to_yaml()), flags=re.MULTILINE)}, step=0)

    def log(self, epochs: dict[int, dict[str, float]]) -> None:
        for epoch, values in epochs.items():
            self.tracker.log(values, step=epoch)

    def finish(self) -> None:
        self.tracker.finish()


class _MLflow:
    """A run in the experiment that has the run folder's name, at `MLFLOW_TRACKING_URI`, else in `tracking/mlruns/`.

    MLflow has one active run in a process, and a pack has several trials: a run is active only while it is written to.
    `tracking/TRIAL.json` says which it is, and how far.
    """

    def __init__(self, config: Config, run: Folder, trial_id: str) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]

        self.config, self.trial_id, self.place = config, trial_id, run / FOLDER / f"{trial_id}.json"
        self.experiment = _plain(run)
        if "MLFLOW_TRACKING_URI" not in os.environ:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # asked for by versions that prefer a database
            mlflow.set_tracking_uri((Path(str(run)) / FOLDER / "mlruns").absolute().as_uri())
        with suppress(mlflow.MlflowException):  # it is there, perhaps since another worker made it just now
            mlflow.create_experiment(self.experiment)
        self.run_id, self.shown = None, -1
        with suppress(FileNotFoundError):
            told = json.loads(read_bytes(self.place))
            self.run_id, self.shown = told["run_id"], told["epoch"]

    def log(self, epochs: dict[int, dict[str, float]]) -> None:
        new = {epoch: values for epoch, values in epochs.items() if epoch > self.shown}
        if not new:
            return
        tracker = tracking.MLflowTracker(self.experiment, run_id=self.run_id, run_name=self.trial_id)
        tracker.start()
        try:
            if self.run_id is None:
                self.run_id = tracker.tracker.info.run_id
                tracker.store_init_configuration(_without_secrets(self.config))
            for epoch, values in new.items():
                tracker.log(values, step=epoch)
        finally:
            tracker.finish()
        self.shown = max(new)
        write_bytes(self.place, json.dumps({"run_id": self.run_id, "epoch": self.shown}).encode())

    def finish(self) -> None:
        """Nothing: it is closed after each writing."""


class _WandB:
    """A run in the project `WANDB_PROJECT`, else `bora-sweep`, in a group of the run folder's name.

    Offline unless `WANDB_MODE` says otherwise: nothing leaves the machine unasked; `wandb sync` sends it later.
    """

    def __init__(self, config: Config, run: Folder, trial_id: str) -> None:
        self.scratch = None if isinstance(run, Path) else tempfile.TemporaryDirectory(prefix="bora-sweep-wandb-")
        place = Path(str(run)) / FOLDER if self.scratch is None else Path(self.scratch.name)
        place.mkdir(parents=True, exist_ok=True)
        self.tracker = tracking.WandBTracker(
            os.environ.get("WANDB_PROJECT", "bora-sweep"),
            name=trial_id,
            id=hashlib.sha256(f"{run} {trial_id}".encode()).hexdigest()[:16],
            group=_plain(run),
            resume="allow",  # steps that it has already are not taken twice
            reinit="create_new",  # beside the runs of the pack's other trials
            mode=os.environ.get("WANDB_MODE", "offline"),
            dir=str(place),
            config=_without_secrets(config),
        )
        self.tracker.start()

    def log(self, epochs: dict[int, dict[str, float]]) -> None:
        for epoch, values in epochs.items():
            self.tracker.log(values, step=epoch)

    def finish(self) -> None:
        self.tracker.finish()
        if self.scratch is not None:
            self.scratch.cleanup()


SINKS: dict[str, Callable[[Config, Folder, str], Sink]] = {
    "tensorboard": _TensorBoard,
    "mlflow": _MLflow,
    "wandb": _WandB,
}


def check_tracker(name: str, run: Folder) -> None:
    """Refuse a tracker that is not installed, or that cannot write where the run is.

    Raises:
        InputError: The tracker is not installed, or writes to local folders alone and the run is remote.
    """
    if not any(map(find_spec, PACKAGES[name])):
        raise InputError(f"tracking={name}: is not installed; pip install 'bora-sweep[{name}]', or drop it")
    if isinstance(run, Path) or name == "wandb" or (name == "mlflow" and "MLFLOW_TRACKING_URI" in os.environ):
        return
    mend = "set MLFLOW_TRACKING_URI" if name == "mlflow" else "set tracking=mlflow or wandb"
    raise InputError(f"tracking={name}: writes to local folders only, and output={run} is remote; {mend}, or drop it")


def _plain(run: Folder) -> str:
    """The run folder's name, which MLflow puts into a query."""
    return re.sub(r"[^\w.-]", "_", run.absolute().name) or "run"


def _without_secrets(config: Config) -> dict[str, str]:
    """The configuration as `{"prior.tau": "100.0"}`, without secrets."""
    return {key: redact(str(value)) for key, value in flatten(config.to_dict()).items()}
