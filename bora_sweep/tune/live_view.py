"""What a person sees while a sweep runs: a live table in a terminal, a line per finished trial in a log."""

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
from bora_sweep.runs.results import trial_rows
from bora_sweep.runs.storage import Folder
from bora_sweep.tune.points import num_trials
from bora_sweep.tune.status import best_row, cells, label, summary, time_left, trial_table

LOOK_SECONDS, LOOK_REMOTE_SECONDS = 2.0, 10.0
"""Between two looks of a terminal's table at the trials that run: Tune hears of them less often."""


class SweepView(tune.Callback):
    """Follows a sweep by the rows that its trials write; a context manager around `tune_run`."""

    def __init__(self, config: Config, run: Folder, console: Console) -> None:
        self.config, self.run, self.total, self.console = config, run, num_trials(config), console
        self.rows = {row["trial_id"]: row for row in trial_rows(run)}
        self.running: dict[str, Any] = {}
        self.looked_at, self.pause = time.monotonic(), LOOK_SECONDS if isinstance(run, Path) else LOOK_REMOTE_SECONDS
        self.live = Live(get_renderable=self.render, console=console, refresh_per_second=2)

    def __enter__(self) -> "SweepView":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks for a restore that no one makes, and a terminal cannot be pickled."""
        return {}

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:  # noqa: ARG002
        """A trial began, or began again."""
        self.running[trial.trial_id] = trial
        self._read([trial])

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:  # noqa: ARG002
        """A trial said how it stands."""
        self._read([trial])

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:  # noqa: ARG002
        """A trial ended."""
        self._read([trial])
        self.running.pop(trial.trial_id, None)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A trial failed for good."""
        self.on_trial_complete(iteration, trials, trial, **info)

    def say_stopping(self) -> None:
        """The first Ctrl-C."""
        self.console.print("stopping: trials write their checkpoints … (Ctrl-C again to stop at once)")

    def render(self) -> Group:
        """The table and the line below it."""
        if time.monotonic() - self.looked_at > self.pause:
            self.looked_at = time.monotonic()
            self._read(self.running.values())
        if not self.rows:
            return Group(Text("starting Ray and its first workers …", style="dim"))
        return Group(trial_table(self.rows.values(), self._best()), Text(self.summary(), style="bold"))

    def summary(self) -> str:
        """How far the sweep is, the best so far, and the time that it still takes if it goes on as it went."""
        told = summary(self.rows.values(), self.total, self._best())
        at_once = sum(len(trial.config["fits"]) for trial in list(self.running.values()))
        left = time_left(self.rows.values(), self.config, datetime.now(UTC), at_once)
        return told if left is None else f"{told} · {left}"

    def _read(self, trials: Iterable[Any]) -> None:
        """Say which fits of `trials` have ended since, as the others stand now and as if their places were filled."""
        if ended := self._ended(trials):
            for row in [*ended, *self._ended(self.running.values())]:
                self._say(row)

    def _ended(self, trials: Iterable[Any]) -> list[dict[str, Any]]:
        """Read the rows of trials, of which a pack or a path has several; those that had not ended and have."""
        ended = []
        for fit in [fit for trial in list(trials) for fit in trial.config["fits"]]:
            for row in trial_rows(self.run, fit["trial_id"]):
                before = self.rows.get(row["trial_id"], {}).get("status")
                self.rows[row["trial_id"]] = row
                if row["status"] in ("finished", "failed") and row["status"] != before:
                    ended.append(row)
        return ended

    def _say(self, row: dict[str, Any]) -> None:
        if not self.console.is_terminal:
            trial_id, _, seed, state, epochs, scores, seconds = cells(row)
            said = row["error"] if row["status"] == "failed" else f"{epochs} epochs, validation perplexity {scores}"
            self.console.print(f"{trial_id}  {label(row)}, seed {seed}: {state}, {said}, {seconds} s", soft_wrap=True)
            self.console.print(f"     {self.summary()}", soft_wrap=True)

    def _best(self) -> dict[str, Any] | None:
        return best_row(self.rows.values(), self.config)
