"""How a run stands, by the rows that its trials wrote and by who drives it: what `status` and a sweep itself show."""

import math
import shlex
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from bora_sweep.config import UNTRAINED, Config
from bora_sweep.runs.folder import config_of
from bora_sweep.runs.results import refuse_no_run, trial_rows
from bora_sweep.runs.run_lock import Driver, read_driver
from bora_sweep.runs.storage import Folder, exists, modified_at
from bora_sweep.tune.points import fixed_points, num_trials, trial_id

Row = dict[str, Any]

STYLES = {"running": "cyan", "finished": "green", "failed": "red", "interrupted": "yellow", "cut off": "yellow"}
ENDED = ("finished", "failed")
ROWS = 24  # of a terminal that the table takes at most


@dataclass(frozen=True)
class RunStatus:
    """A run at one moment."""

    run: Folder
    config: Config | None
    """None where only the results are left of the run."""
    rows: list[Row]
    """Of `trials`."""
    driver: Driver | None
    silent_seconds: dict[str, float]
    """Since each open trial's row was written, by the storage's clock."""

    @property
    def is_driven(self) -> bool:
        """Whether a process works on it."""
        return self.driver is not None and self.driver.is_alive

    @property
    def command(self) -> str:
        """`fit` or `sweep`."""
        if self.driver is not None:
            return self.driver.command
        return "fit" if any(row["trial_id"] == "fit" for row in self.rows) else "sweep"

    @property
    def total(self) -> int | None:
        """Fits that were asked for; None where that is not known."""
        if self.command == "fit":
            return 1
        return None if self.config is None else num_trials(self.config)

    @property
    def has_ended(self) -> bool:
        """Whether nothing runs, and nothing waits but trials that failed."""
        ended = sum(row["status"] in ENDED for row in self.rows)
        return not self.is_driven and ended == (self.total or len(self.rows))


def run_status(run: Folder) -> RunStatus:
    """Read how `run` stands; it may have only just begun, or be cut off.

    Raises:
        InputError: Not a run's folder, or one of another version.
    """
    refuse_no_run(run)
    driver = read_driver(run)  # before the rows: one that has ended since leaves no row that runs
    rows = trial_rows(run)
    config = config_of(run) if exists(run / "config.yaml") else None
    open_trials, now = [row["trial_id"] for row in rows if _is_open(row)], time.time()
    folder = run / "results" / "trials"
    silent = {name: max(0.0, now - modified_at(folder / f"{name}.parquet")) for name in open_trials}
    return RunStatus(run, config, rows, driver, silent)


def render(stands: RunStatus) -> Group:
    """Who drives the run, its trials, and the line that sums up."""
    rows = stands.rows
    if not stands.is_driven:
        rows = [row | {"status": "cut off"} if row["status"] == "running" else row for row in rows]
    best = best_row(rows, stands.config)
    table = trial_table(rows, best, stands.silent_seconds)
    hidden = len(rows) - table.row_count
    parts = [Text(f"{stands.run}: {_driven(stands)}"), table]
    if hidden:
        parts.append(Text(f"and {hidden:,} more, in results/trials", style="dim"))
    said = [summary(rows, stands.total, best), *_left(stands)]
    return Group(*(parts if rows else parts[:1]), Text(" · ".join(said), style="bold"))


def _driven(stands: RunStatus) -> str:
    """Who works on it, else how to go on."""
    driver = stands.driver
    again = f"bora-sweep {stands.command} --resume output={shlex.quote(str(stands.run))}"
    if driver is not None:
        who = f"process {driver.pid} on {driver.host}"
        sign = f"gave a sign of life {_ago(driver.silent_seconds)}"
        if driver.is_alive:
            return f"{who} works on it and {sign}"
        return f"cut off: {who} is gone, it {sign}; go on with {again}"
    if not stands.has_ended:
        return f"stopped, nothing works on it; go on with {again}"
    failed = any(row["status"] == "failed" for row in stands.rows)
    return f"ended; {again} tries again what failed" if failed else "ended"


def _left(stands: RunStatus) -> list[str]:
    """The time left, or why it cannot be told."""
    if not stands.is_driven or stands.config is None:
        return []
    if stands.command == "fit":
        return ["time left: not known, a fit ends when validation no longer improves"]
    told = time_left(stands.rows, stands.config, datetime.now(UTC))
    return [told] if told else ["time left: not known before a fit has ended"]


def time_left(rows: Iterable[Row], config: Config, now: datetime, at_once: int = 0) -> str | None:
    """`about 0:12:30 left, …` with what that rests on; None where nothing is left, or no fit like those has ended.

    A fit is taken to last as long as those that have ended did on average, one that has lasted longer to be about to
    end, and `at_once` to go on at a time, or as many as run now where those are more.
    """
    rows = list(rows)
    is_path = config.search.mode == "path"
    alike = [row for row in rows if "." in row["trial_id"]] if is_path else rows
    took = [elapsed for row in alike if row["status"] == "finished" and (elapsed := _elapsed(row, row["ended_at"]))]
    running = [row for row in rows if row["status"] == "running"]
    waiting = _num_waiting(rows, config)
    opened = [row for row in rows if _is_open(row)]
    if not took or not (opened or waiting):
        return None
    mean = sum(took) / len(took)
    left = [max(0.0, mean - _elapsed(row, now)) for row in opened] + [mean] * waiting
    at_once = max(1, at_once, len(running))
    seconds = max(sum(left) / at_once, *left)
    fits = f"{len(took)} that ended" if len(took) > 1 else "the one that ended"
    return f"about {timedelta(seconds=round(seconds))} left, by {fits}, {at_once} at once"


def _num_waiting(rows: list[Row], config: Config) -> int:
    """Fits that have not begun, those left out that are scored as they are."""
    known, seeds = {row["trial_id"] for row in rows}, config.search.seeds
    brief = [
        own
        for point in fixed_points(config)
        for seed in range(seeds)
        if point.method in UNTRAINED and (own := trial_id(point.number, seed, seeds)) not in known
    ]
    return max(0, num_trials(config) - len(rows) - len(brief))


def _elapsed(row: Row, until: datetime | None) -> float:
    """Seconds that a fit took, validation and set-up included; 0 where nothing was trained or it is not known."""
    if not row["epochs"] and row["status"] == "finished":
        return 0.0
    if row["attempts"] not in (None, 1) or row["status"] == "interrupted":  # the pauses between are not its own
        return row["train_seconds"] or 0.0
    return (until - row["started_at"]).total_seconds() if until is not None and row["started_at"] is not None else 0.0


def _is_open(row: Row) -> bool:
    return row["status"] not in ENDED


def summary(rows: Iterable[Row], total: int | None, best: Row | None) -> str:
    """How many trials stand how, and the best so far."""
    states = [row["status"] for row in rows]
    done = states.count("finished")
    parts = [f"{done} trials finished" if total is None else f"{done} of {total} trials finished"]
    parts += [f"{n} {state}" for state in ("running", "failed", "interrupted", "cut off") if (n := states.count(state))]
    if total is not None and total > len(states):
        parts.append(f"{total - len(states)} waiting")
    told = ", ".join(parts)
    if best is None:
        return told
    return f"{told} · best so far {label(best)}, validation perplexity {best['validation_perplexity']:.2f}"


def best_row(rows: Iterable[Row], config: Config | None) -> Row | None:
    """The finished MAP fit of the sweep's own rank with the lowest validation perplexity: test chooses nothing."""
    finished = [
        row
        for row in rows
        if row["status"] == "finished" and row["method"] == "map" and row["validation_perplexity"] is not None
        and (config is None or row["lora_rank"] == config.lora.rank)
    ]  # fmt: skip
    return min(finished, key=lambda row: row["validation_perplexity"], default=None)


def trial_table(rows: Iterable[Row], best: Row | None, silent_seconds: dict[str, float] | None = None) -> Table:
    """Those that run, then the best of the others, in the order of their numbers; the best of all in bold.

    Args:
        rows: Of `trials`.
        best: Of `best_row`.
        silent_seconds: Since each open trial's row was written; None: not shown.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("trial", "tau", "seed", "state", "epoch", "validation perplexity", "seconds"):
        table.add_column(name, justify="left" if name in ("trial", "state") else "right")
    if silent_seconds is not None:
        table.add_column("last report", justify="right")
    for row in _shown(rows):
        style = "bold" if best is not None and row["trial_id"] == best["trial_id"] else ""
        age = [] if silent_seconds is None else [_ago(silent_seconds.get(row["trial_id"]))]
        table.add_row(*cells(row), *age, style=style)
    return table


def _shown(rows: Iterable[Row]) -> list[Row]:
    rank = {"running": -1.0, "cut off": -1.0, "failed": math.inf}
    ordered = sorted(rows, key=lambda row: rank.get(row["status"], row["validation_perplexity"] or math.inf))
    return sorted(ordered[:ROWS], key=lambda row: row["trial_id"])


def label(row: Row) -> str:
    """What is fitted: tau, after the method where it is not BoRA's own."""
    method = (row["method"] or "").replace("_", "-")
    tau = "" if row["tau"] is None or math.isnan(row["tau"]) else f"tau = {row['tau']:,.4g}"
    return tau if method == "map" else ", ".join(part for part in (method, tau) if part)


def cells(row: Row) -> tuple[str, ...]:
    """A row as markup: trial, tau, seed, state, epochs, validation perplexity, seconds."""
    perplexity, seconds, state = row["validation_perplexity"], row["train_seconds"], row["status"]
    return (
        escape(row["trial_id"]),
        label(row).removeprefix("tau = "),
        str(row["seed"]),
        f"[{STYLES.get(state, '')}]{state}[/]" if state in STYLES else escape(str(state)),
        "" if row["epochs"] is None else str(row["epochs"]),
        "" if perplexity is None else f"{perplexity:.2f}",
        "" if seconds is None else f"{seconds:.0f}",
    )


def _ago(seconds: float | None) -> str:
    return "" if seconds is None else f"{timedelta(seconds=round(seconds))} ago"
