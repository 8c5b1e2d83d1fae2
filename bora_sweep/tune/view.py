"""What a person sees while a sweep runs: a live table in a terminal, a line per finished trial in a log."""

import math
import time
from datetime import timedelta
from types import TracebackType
from typing import Any

from ray import tune
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bora_sweep.config import Config
from bora_sweep.results import trial_rows
from bora_sweep.storage import Folder
from bora_sweep.tune.points import num_trials

STYLES = {"running": "cyan", "finished": "green", "failed": "red", "interrupted": "yellow"}
ROWS = 24  # of a terminal that the table takes at most


class SweepView(tune.Callback):
    """Follows a sweep by the rows that its trials write; a context manager around `tune_run`."""

    def __init__(self, config: Config, run: Folder, console: Console) -> None:
        self.config, self.run, self.total, self.console = config, run, num_trials(config), console
        self.rows = {row["trial_id"]: row for row in trial_rows(run)}
        self.started, self.done_before = time.monotonic(), self._count("finished")
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
        self._read(trial)

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:  # noqa: ARG002
        """A trial ended an epoch."""
        self._read(trial)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:  # noqa: ARG002
        """A trial ended."""
        self._read(trial)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:  # noqa: ARG002
        """A trial failed for good."""
        self._read(trial)

    def say_stopping(self) -> None:
        """The first Ctrl-C."""
        self.console.print("stopping: trials write their checkpoints … (Ctrl-C again to stop at once)")

    def render(self) -> Group:
        """The table and the line below it."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("trial", "tau", "seed", "state", "epoch", "validation perplexity", "seconds"):
            table.add_column(name, justify="left" if name in ("trial", "state") else "right")
        if not self.rows:
            return Group(Text("starting Ray and its first workers …", style="dim"))
        best = self._best()
        for row in self._shown():
            style = "bold" if best is not None and row["trial_id"] == best["trial_id"] else ""
            table.add_row(*_cells(row), style=style)
        return Group(table, Text(self.summary(), style="bold"))

    def summary(self) -> str:
        """How far the sweep is, the best so far, and the time that it still takes if it goes on as it went."""
        done, failed = self._count("finished"), self._count("failed")
        parts = [f"{done} of {self.total} trials finished" + (f", {failed} failed" if failed else "")]
        best = self._best()
        if best is not None:
            parts.append(f"best so far {_label(best)}, validation perplexity {best['validation_perplexity']:.2f}")
        new = done + failed - self.done_before
        if new > 0 and done + failed < self.total:
            left = (time.monotonic() - self.started) / new * (self.total - done - failed)
            parts.append(f"about {timedelta(seconds=round(left))} left")
        return " · ".join(parts)

    def _read(self, trial: Any) -> None:
        """The rows of a pack or a path; those that have ended since are said."""
        rows = [row for fit in trial.config["fits"] for row in trial_rows(self.run, fit["trial_id"])]
        for row in rows:
            before = self.rows.get(row["trial_id"], {}).get("status")
            self.rows[row["trial_id"]] = row
            if row["status"] in ("finished", "failed") and row["status"] != before:
                self._say(row)

    def _say(self, row: dict[str, Any]) -> None:
        if not self.console.is_terminal:
            trial_id, _, seed, state, epochs, scores, seconds = _cells(row)
            said = row["error"] if row["status"] == "failed" else f"{epochs} epochs, validation perplexity {scores}"
            self.console.print(f"{trial_id}  {_label(row)}, seed {seed}: {state}, {said}, {seconds} s", soft_wrap=True)
            self.console.print(f"     {self.summary()}", soft_wrap=True)

    def _count(self, status: str) -> int:
        return sum(row["status"] == status for row in self.rows.values())

    def _best(self) -> dict[str, Any] | None:
        rank = self.config.lora.rank
        finished = [
            row
            for row in self.rows.values()
            if row["status"] == "finished" and row["method"] == "map" and row["lora_rank"] == rank
        ]
        return min(finished, key=lambda row: row["validation_perplexity"], default=None)

    def _shown(self) -> list[dict[str, Any]]:
        """The running ones, then the best of the others, in the order of their numbers."""
        rank = {"running": -1.0, "failed": math.inf}
        ordered = sorted(
            self.rows.values(), key=lambda row: rank.get(row["status"], row["validation_perplexity"] or math.inf)
        )
        return sorted(ordered[:ROWS], key=lambda row: row["trial_id"])


def _label(row: dict[str, Any]) -> str:
    """What is fitted: tau, after the method where it is not BoRA's own."""
    method = row["method"].replace("_", "-")
    tau = "" if row["tau"] is None else f"tau = {row['tau']:,.4g}"
    return tau if method == "map" else ", ".join(part for part in (method, tau) if part)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    perplexity, seconds = row["validation_perplexity"], row["train_seconds"]
    return (
        row["trial_id"],
        _label(row).removeprefix("tau = "),
        str(row["seed"]),
        f"[{STYLES[row['status']]}]{row['status']}[/]",
        str(row["epochs"]),
        "" if perplexity is None else f"{perplexity:.2f}",
        "" if seconds is None else f"{seconds:.0f}",
    )
