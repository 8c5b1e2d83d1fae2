"""The state of a run, read from the rows of its trials and from the file of the process that drives it."""

import shlex
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pandas as pd
from rich.console import Group
from rich.text import Text

from bora_sweep.config import Config
from bora_sweep.console import as_html
from bora_sweep.runs.folder import ADD, FIT, command_of_trials, config_of
from bora_sweep.runs.requests import STOP_TRIAL_FILE, asked_to_try
from bora_sweep.runs.results import refuse_no_run, trial_rows
from bora_sweep.runs.run_lock import Driver, read_driver
from bora_sweep.runs.storage import Folder, exists, modified_at
from bora_sweep.tune.numbering import Numbering, read_numbering
from bora_sweep.tune.points import ENDED
from bora_sweep.tune.time_left import time_left
from bora_sweep.tune.trial_table import ago, best_row, summary, trial_table


@dataclass(frozen=True)
class RunStatus:
    """A run at one moment."""

    run: Folder
    config: Config | None
    """None where only the run's results are left."""
    rows: list[dict[str, Any]]
    """Of `trials`."""
    driver: Driver | None
    silent_seconds: dict[str, float]
    """Since each open trial's row was written, by the storage's clock."""
    numbering: Numbering | None
    """Of the points of a sweep; None where only the run's results are left."""
    stopping: frozenset[str] = frozenset()
    """Open trials that another terminal asked to end."""
    queued: tuple[float, ...] = ()
    """Values of tau that another terminal asked for, and that are not begun."""

    @property
    def trials(self) -> pd.DataFrame:
        """The rows of `trials` so far."""
        return pd.DataFrame(self.rows)

    @property
    def best(self) -> dict[str, Any] | None:
        """The row of the finished MAP fit that is best on validation; None before there is one."""
        return best_row(self.rows, self.config)

    def __str__(self) -> str:
        return as_html(render(self))[1]

    def _repr_html_(self) -> str:
        return as_html(render(self))[0]

    @property
    def is_driven(self) -> bool:
        """Whether a process works on it."""
        return self.driver is not None and self.driver.is_alive

    @property
    def command(self) -> str:
        """`fit`, `sweep` or `add`."""
        if self.driver is not None:
            return self.driver.command
        return command_of_trials({row["trial_id"] for row in self.rows}) or "sweep"

    @property
    def total(self) -> int | None:
        """Fits of the whole run; None where that is not known."""
        if self.command == FIT:
            return 1
        if self.command == ADD:  # under Theta, where there are groups under Theta_g, and the fit
            return 2 if self.config is None or not self.config.has_group_level else 3
        return None if self.config is None or self.numbering is None else self.numbering.num_fits(self.config)

    @property
    def has_ended(self) -> bool:
        """Whether no process works on it, and every fit has finished or failed."""
        num_ended = sum(row["status"] in ENDED for row in self.rows)
        return not self.is_driven and num_ended == (self.total or len(self.rows))


def run_status(run: Folder) -> RunStatus:
    """Read the state of `run`, which may have just started or be cut off.

    Raises:
        InputError: Not a run's folder, or one of another version.
    """
    refuse_no_run(run)
    driver = read_driver(run)  # before the rows: then a process that has just ended leaves no row that says it runs
    rows = trial_rows(run)
    config = config_of(run) if exists(run / "config.yaml") else None
    now, folder = time.time(), run / "results" / "trials"
    open_trials = [row["trial_id"] for row in rows if row["status"] not in ENDED]
    silent = {name: max(0.0, now - modified_at(folder / f"{name}.parquet")) for name in open_trials}
    numbering = None if config is None else read_numbering(run, config)
    stopping = frozenset(name for name in open_trials if exists(run / "trials" / name / STOP_TRIAL_FILE))
    queued = tuple(tau for _, tau in asked_to_try(run))
    return RunStatus(run, config, rows, driver, silent, numbering, stopping, queued)


def render(status: RunStatus) -> Group:
    """Which process drives the run, the table of its trials, and the line that sums up."""
    rows = status.rows
    running = {row["trial_id"]: "cut off" for row in rows if not status.is_driven}
    running |= {name: "stopping" for name in status.stopping if status.is_driven}
    rows = [
        row | {"status": running.get(row["trial_id"], "running")} if row["status"] == "running" else row for row in rows
    ]
    best = best_row(rows, status.config)
    line = summary(rows, status.total, best, _time_left(status))
    if status.queued:
        line += f" · queued: tau = {', '.join(f'{tau:g}' for tau in status.queued)}"
    table = trial_table(rows, best, line, status.silent_seconds or None)
    return Group(Text(f"{status.run}: {_driver_line(status)}"), table)


def _driver_line(status: RunStatus) -> str:
    """Which process works on the run, else how to resume it."""
    driver = status.driver
    resume = f"bora-sweep {status.command} --resume output={shlex.quote(str(status.run))}"
    if driver is not None:
        process = f"process {driver.pid} on {driver.host}"
        heartbeat = f"last heartbeat {ago(driver.silent_seconds)}"
        if driver.is_alive:
            return f"{process} works on it, {heartbeat}"
        return f"cut off: {process} is gone, {heartbeat}; resume with {resume}"
    if not status.has_ended:
        return f"stopped, no process works on it; resume with {resume}"
    failed = any(row["status"] == "failed" for row in status.rows)
    return f"ended; to try failed trials again: {resume}" if failed else "ended"


def _time_left(status: RunStatus) -> str | None:
    """The time left, or why it is not known; None where no process works on the run."""
    if not status.is_driven or status.config is None:
        return None
    if status.command in (FIT, ADD):
        return "time left: not known, a fit ends when validation no longer improves"
    assert status.numbering is not None
    left = time_left(status.rows, status.config, status.numbering, datetime.now(UTC))
    return left or "time left: not known before a fit has ended"
