"""The trials of a sweep as text: a table, a line per trial, a line that sums up. For a running sweep and `status`."""

import math
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from bora_sweep.config import PERPLEXITY, Config
from bora_sweep.runs.requests import USER
from bora_sweep.runs.results import objective

Row = dict[str, Any]

STYLES = {
    "running": "cyan", "stopping": "yellow", "finished": "green", "stopped": "green", "failed": "red",
    "interrupted": "yellow", "cut off": "yellow",
}  # fmt: skip
MAX_ROWS = 24
"""Of a terminal that the table takes."""


def best_row(rows: Iterable[Row], config: Config | None) -> Row | None:
    """The finished MAP fit of the sweep's own rank that is best on validation: test chooses nothing."""
    finished = [
        row
        for row in rows
        if row["status"] == "finished" and row["method"] == "map" and row["validation_perplexity"] is not None
        and (config is None or row["lora_rank"] == config.lora.rank)
    ]  # fmt: skip
    return min(finished, key=_rank, default=None)


def _rank(row: Row) -> tuple[float, float]:
    """Lower is better: what the search minimises, then perplexity, as many fits have the same accuracy."""
    perplexity = _number_or_inf(row["validation_perplexity"])
    return perplexity if _metric(row) is None else _number_or_inf(objective(row)), perplexity


def _number_or_inf(value: float | None) -> float:
    return math.inf if value is None or math.isnan(value) else value


def _metric(row: Row) -> str | None:
    """The metric that chooses tau; None where perplexity does."""
    name = row["search_objective"]
    return None if name in (None, PERPLEXITY) else name


def _validation(row: Row) -> str:
    """The scores of a row on validation, that which chooses tau first."""
    text = f"validation perplexity {_number(row['validation_perplexity'], 2)}"
    return text if _metric(row) is None else f"validation {_metric(row)} {_metric_value(row)}, {text}"


def _metric_value(row: Row) -> str:
    """The mean on validation of the metric that chooses tau; empty before the trial has ended."""
    value = -objective(row)
    return "" if math.isnan(value) else f"{value:.3f}"


def summary(rows: Iterable[Row], total: int | None, best: Row | None, time_left: str | None = None) -> str:
    """The number of trials in each state, the best so far, and the time left.

    Args:
        rows: Of `trials`.
        total: Fits of the whole run; None: not known.
        best: Of `best_row`.
        time_left: As text.
    """
    states = [row["status"] for row in rows]
    num_finished = states.count("finished")
    counts = [f"{num_finished} trials finished" if total is None else f"{num_finished} of {total} trials finished"]
    counts += [
        f"{n} {state}"
        for state in ("running", "stopping", "failed", "interrupted", "cut off")
        if (n := states.count(state))
    ]
    if total is not None and total > len(states):
        counts.append(f"{total - len(states)} waiting")
    parts = [", ".join(counts)]
    if best is not None:
        parts.append(f"best so far {trial_label(best)}, {_validation(best)}")
    if time_left is not None:
        parts.append(time_left)
    return " · ".join(parts)


def trial_table(
    rows: Iterable[Row], best: Row | None, line: str, silent_seconds: dict[str, float] | None = None
) -> Group:
    """A table of the trials that run and the best of the others, by trial id; the best of all in bold.

    Args:
        rows: Of `trials`.
        best: Of `best_row`.
        line: Of `summary`, shown below the table.
        silent_seconds: Since each open trial's row was written; None: no such column.
    """
    rows = list(rows)
    metric = next((name for row in rows if (name := _metric(row)) is not None), None)
    table = Table(box=None, pad_edge=False, header_style="bold")
    shown = [] if metric is None else [f"validation {metric}"]
    for name in ("trial", "tau", "seed", "state", "epoch", *shown, "validation perplexity", "seconds"):
        table.add_column(name, justify="left" if name in ("trial", "state") else "right")
    if silent_seconds is not None:
        table.add_column("last report", justify="right")
    for row in _shown(rows):
        style = "bold" if best is not None and row["trial_id"] == best["trial_id"] else ""
        last_report = [] if silent_seconds is None else [ago(silent_seconds.get(row["trial_id"]))]
        table.add_row(*_cells(row, with_metric=metric is not None), *last_report, style=style)
    parts: list[Table | Text] = [table] if rows else []
    if len(rows) > MAX_ROWS:
        parts.append(Text(f"and {len(rows) - MAX_ROWS:,} more, in results/trials", style="dim"))
    return Group(*parts, Text(line, style="bold"))


def _shown(rows: list[Row]) -> list[Row]:
    rank = dict.fromkeys(("running", "stopping", "cut off"), (-math.inf, 0.0)) | {"failed": (math.inf, math.inf)}
    by_rank = sorted(rows, key=lambda row: rank.get(row["status"]) or _rank(row))
    return sorted(by_rank[:MAX_ROWS], key=lambda row: row["trial_id"])


def trial_label(row: Row) -> str:
    """What is fitted: the method where it is not MAP, tau, and tau_2 where there is a level of groups."""
    method = (row["method"] or "").replace("_", "-")
    tau = "" if row["tau"] is None or math.isnan(row["tau"]) else f"tau = {row['tau']:,.4g}"
    tau_2 = row.get("tau_2")  # results of older releases do not have it
    if row["tau"] and tau_2 is not None and tau_2 < math.inf:  # false of nan, too
        tau += f", tau_2 = {tau_2:,.4g}"
    return tau if method == "map" else ", ".join(part for part in (method, tau) if part)


def _cells(row: Row, *, with_metric: bool) -> tuple[str, ...]:
    """A row as markup, without the age of its last report."""
    state = _state(row)
    return (
        escape(row["trial_id"]),
        trial_label(row).removeprefix("tau = "),
        str(row["seed"]),
        f"[{STYLES[state]}]{state}[/]" if state in STYLES else escape(str(state)),
        "" if row["epochs"] is None else str(row["epochs"]),
        *([_metric_value(row)] if with_metric else []),
        _number(row["validation_perplexity"], 2),
        _number(row["train_seconds"], 0),
    )


def _state(row: Row) -> str:
    """Its status; `stopped` where it finished because a user stopped it."""
    return "stopped" if row["status"] == "finished" and row["stopped_by"] == USER else row["status"]


def ended_line(row: Row) -> str:
    """A trial that has ended, with its scores or its error, as a line of a log."""
    if row["status"] == "failed":
        result = escape(row["error"] or "no reason known")
    else:
        epochs = "" if row["epochs"] is None else row["epochs"]
        result = f"{epochs} epochs, {_validation(row)}"
    state = f"[{STYLES[_state(row)]}]{_state(row)}[/]"
    seconds = _number(row["train_seconds"], 0)
    return f"{escape(row['trial_id'])}  {trial_label(row)}, seed {row['seed']}: {state}, {result}, {seconds} s"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def ago(seconds: float | None) -> str:
    """`0:00:08 ago`; empty where it is not known."""
    return "" if seconds is None else f"{timedelta(seconds=round(seconds))} ago"
