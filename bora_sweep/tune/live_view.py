"""A running sweep as its user sees it: a live table in a terminal or a notebook, else a line per finished trial."""

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from ray import tune
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from bora_sweep.config import Config
from bora_sweep.console import NotebookOutput, as_html, log
from bora_sweep.runs.results import trial_rows
from bora_sweep.runs.storage import Folder
from bora_sweep.tune.numbering import Numbering, read_numbering
from bora_sweep.tune.points import ENDED
from bora_sweep.tune.time_left import time_left
from bora_sweep.tune.trial_table import best_row, ended_line, summary, trial_table

POLL_SECONDS, POLL_REMOTE_SECONDS = 2.0, 10.0
"""Between two reads of the running trials' rows for a terminal's table: Tune hears of them less often."""


class SweepView(tune.Callback):
    """Follows a sweep by the rows that its trials write; a context manager around `run_tuner`."""

    def __init__(self, config: Config, run: Folder, console: Console) -> None:
        self.config, self.run, self.numbering, self.console = config, run, read_numbering(run, config), console
        self.rows = {row["trial_id"]: row for row in trial_rows(run)}
        self.running: dict[str, Any] = {}
        self.polled_at = time.monotonic()
        self.poll_seconds = POLL_SECONDS if isinstance(run, Path) else POLL_REMOTE_SECONDS
        self.notebook = NotebookOutput() if console.is_jupyter and not console.quiet else None
        self.live = Live(get_renderable=self.render, console=console, refresh_per_second=2)

    def __enter__(self) -> "SweepView":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.console.is_terminal:
            self.live.stop()
        self._show_in_notebook(at_once=True)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks for a restore that is never made, and a terminal cannot be pickled."""
        return {}

    @property
    def total(self) -> int:
        """Fits of the whole sweep."""
        return self.numbering.num_fits(self.config)

    def renumber(self, numbering: Numbering) -> None:
        """A value was added to the sweep."""
        self.numbering = numbering

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:  # noqa: ARG002
        """A trial started, or started again."""
        self.running[trial.trial_id] = trial
        self._update([trial])

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:  # noqa: ARG002
        """A trial reported."""
        self._update([trial])

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:  # noqa: ARG002
        """A trial ended."""
        self._update([trial])
        self.running.pop(trial.trial_id, None)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A trial failed for good."""
        self.on_trial_complete(iteration, trials, trial, **info)

    def print_stopping(self) -> None:
        """Answer the first Ctrl-C."""
        self.console.print("stopping: trials write their checkpoints … (Ctrl-C again to stop at once)")

    def render(self) -> Group:
        """The table and the line below it."""
        if time.monotonic() - self.polled_at > self.poll_seconds:
            self.polled_at = time.monotonic()
            self._update(self.running.values())
        if not self.rows:
            return Group(Text("starting Ray and its first workers …", style="dim"))
        return trial_table(self.rows.values(), best_row(self.rows.values(), self.config), self.summary())

    def summary(self) -> str:
        """The number of trials in each state, the best so far, and the time left."""
        rows = self.rows.values()
        num_concurrent = sum(len(trial.config["fits"]) for trial in list(self.running.values()))
        left = time_left(rows, self.config, self.numbering, datetime.now(UTC), num_concurrent)
        return summary(rows, self.total, best_row(rows, self.config), left)

    def _update(self, trials: Iterable[Any]) -> None:
        """Read the rows of `trials`, and print those that have ended since; then the rows of all running trials are
        read too, so that the line below each counts them as they are now."""
        if ended := self._read_ended(trials):
            for row in [*ended, *self._read_ended(self.running.values())]:
                self._print_ended(row)
        self._show_in_notebook(at_once=bool(ended))

    def _show_in_notebook(self, *, at_once: bool) -> None:
        if self.notebook is not None:
            self.notebook.show(*as_html(self.render()), at_once=at_once)

    def _read_ended(self, trials: Iterable[Any]) -> list[dict[str, Any]]:
        """Read the rows of trials, several for a pack or a path; returns those that have ended since the last read."""
        ended = []
        for fit in [fit for trial in list(trials) for fit in trial.config["fits"]]:
            for row in trial_rows(self.run, fit["trial_id"]):
                before = self.rows.get(row["trial_id"], {}).get("status")
                self.rows[row["trial_id"]] = row
                if row["status"] in ENDED and row["status"] != before:
                    ended.append(row)
        return ended

    def _print_ended(self, row: dict[str, Any]) -> None:
        if self.console.is_terminal or self.notebook is not None:
            log(ended_line(row))
            return
        self.console.print(ended_line(row), soft_wrap=True)
        self.console.print(f"     {self.summary()}", soft_wrap=True)
