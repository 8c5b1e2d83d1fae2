"""Steers a run that a process works on, from any other process that reaches its folder: `stop` and `try`."""

import math
import shlex
from pathlib import Path

from bora_sweep.config import Config
from bora_sweep.errors import InputError
from bora_sweep.runs.folder import config_of
from bora_sweep.runs.requests import STOP_FILE, STOP_TRIAL_FILE, ask_to_try, asked_to_try
from bora_sweep.runs.results import read_trial_row, refuse_no_run, trial_rows
from bora_sweep.runs.run_lock import Driver, read_driver
from bora_sweep.runs.storage import Folder, folder_at, write_bytes
from bora_sweep.tune.numbering import read_numbering
from bora_sweep.tune.points import point_of


def stop(run: str | Folder, trial: str | None = None) -> None:
    """Ask a run to stop, or one of its fits to end with its best epoch; returns without waiting for it.

    The run stops as by Ctrl-C: its fits write checkpoints, and it can be resumed. A fit that ends has `stopped_by` user
    and stays as it is on a resume; the others go on.

    Args:
        run: The run's folder, also at `s3://…` or `gs://…`.
        trial: The ID of a fit that is running; None: the whole run.

    Raises:
        InputError: Not a run, no process works on it, or there is no such fit that runs.
    """
    folder = _run_at(run)
    driver = _driver(folder)
    if driver is None:
        raise InputError(f"{folder}: no process works on it, so nothing is to be stopped")
    if trial is None:
        write_bytes(folder / STOP_FILE, b"")
        return
    rows = {row["trial_id"]: row for row in trial_rows(folder)}
    if trial not in rows:
        begun = ", ".join(sorted(rows)) or "none"
        raise InputError(f"--trial {trial}: no trial of this name has begun in {folder}; those that have: {begun}")
    if (state := rows[trial]["status"]) != "running":
        running = ", ".join(sorted(name for name, row in rows.items() if row["status"] == "running")) or "none"
        raise InputError(f"--trial {trial}: is {state} in {folder}; those that run: {running}")
    write_bytes(folder / "trials" / trial / STOP_TRIAL_FILE, b"")


def try_tau(run: str | Folder, tau: float) -> None:
    """Ask a sweep that is running to fit this value of tau next; returns without waiting for it.

    The value gets a number among the sweep's points, so a resume has it in the same place, and Optuna learns from it.

    Args:
        run: The run's folder, also at `s3://…` or `gs://…`.
        tau: Above 0 and finite: every sweep has both ends.

    Raises:
        InputError: Not a value that can be fitted, the sweep has it already, or no process works on the sweep.
    """
    if math.isnan(tau) or tau < 0:
        raise InputError(f"tau={tau:g}: need a value above 0")
    folder = _run_at(run)
    config = config_of(folder)
    _refuse_other_than_search(folder, config)
    _refuse_known(folder, config, tau)
    if _driver(folder) is None:
        taus = ",".join(f"{value:g}" for value in dict.fromkeys([*config.search.taus, tau]))
        raise InputError(
            f"tau={tau:g}: no process works on {folder}; fit it by bora-sweep sweep --resume "
            f"output={shlex.quote(str(folder))} 'search.taus=[{taus}]'"
        )
    ask_to_try(folder, tau)


def _run_at(run: str | Folder) -> Folder:
    folder = folder_at(run)
    refuse_no_run(folder)
    return folder.absolute() if isinstance(folder, Path) else folder


def _driver(run: Folder) -> Driver | None:
    """The process that works on the run; None where there is none, or it is gone."""
    driver = read_driver(run)
    return driver if driver is not None and driver.is_alive else None


def _refuse_other_than_search(run: Folder, config: Config) -> None:
    driver = _driver(run)
    command = "sweep" if driver is None else driver.command
    if command != "sweep" or read_trial_row(run, "fit") is not None:
        raise InputError(f"{run}: `fit` or `add` began this run, which has one tau; only a sweep takes further values")
    if config.search.mode == "path":
        raise InputError(f"{run}: search.mode=path: a path chooses its own values, each from the one above it")


def _refuse_known(run: Folder, config: Config, tau: float) -> None:
    """Refuse a value that the sweep has, or will have."""
    if tau == 0 or math.isinf(tau):
        name = "shared" if tau else "independent"
        raise InputError(f"tau={tau:g}: every sweep has it, as its baseline {name}")
    rows = trial_rows(run)
    points = {row["trial_id"]: point for row in rows if (point := point_of(row)) is not None}
    for trial_id, point in sorted(points.items()):
        if point.method == "map" and point.tau == tau:
            raise InputError(f"tau={tau:g}: {run} has it already, as trial {trial_id}")
    given = read_numbering(run, config).given.values()
    if tau in [point.tau for point in given if point.method == "map"]:
        raise InputError(f"tau={tau:g}: {run} will fit it, as search.taus names it, or an earlier try")
    if tau in [queued for _, queued in asked_to_try(run)]:
        raise InputError(f"tau={tau:g}: is queued in {run} already")
