"""An estimate of the time that a sweep still takes, from the rows of `trials`."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from bora_sweep.config import UNTRAINED, Config
from bora_sweep.tune.numbering import Numbering
from bora_sweep.tune.points import ENDED


def time_left(
    rows: Iterable[dict[str, Any]], config: Config, numbering: Numbering, now: datetime, num_concurrent: int = 0
) -> str | None:
    """`about 0:12:30 left, …`, and which fits the estimate rests on.

    Each fit is taken to last the mean of those that have ended; one that has lasted longer, to end now.

    Args:
        rows: Of `trials`.
        config: The sweep's.
        numbering: Of its points.
        now: The time of the rows.
        num_concurrent: Fits that will run at once, or as many as run now where those are more.

    Returns:
        None where nothing is left to fit, or no comparable fit has ended.
    """
    rows = list(rows)
    is_path = config.search.mode == "path"
    comparable = [row for row in rows if "." in row["trial_id"]] if is_path else rows
    ended = [sec for row in comparable if row["status"] == "finished" and (sec := _fit_seconds(row, row["ended_at"]))]
    open_rows = [row for row in rows if row["status"] not in ENDED]
    num_waiting = _num_waiting(rows, config, numbering)
    if not ended or not (open_rows or num_waiting):
        return None
    mean = sum(ended) / len(ended)
    remaining = [max(0.0, mean - _fit_seconds(row, now)) for row in open_rows] + [mean] * num_waiting
    num_concurrent = max(1, num_concurrent, sum(row["status"] == "running" for row in rows))
    seconds = max(sum(remaining) / num_concurrent, *remaining)
    source = f"{len(ended)} that ended" if len(ended) > 1 else "the one that ended"
    return f"about {timedelta(seconds=round(seconds))} left (estimated from {source}, {num_concurrent} at once)"


def _num_waiting(rows: list[dict[str, Any]], config: Config, numbering: Numbering) -> int:
    """Fits that have not started, without those that train nothing."""
    started = {row["trial_id"] for row in rows}
    untrained = [
        fit_id
        for number, point in numbering.given.items()
        for seed in range(config.search.seeds)
        if point.method in UNTRAINED and (fit_id := numbering.trial_id(number, seed)) not in started
    ]
    return max(0, numbering.num_fits(config) - len(rows) - len(untrained))


def _fit_seconds(row: dict[str, Any], until: datetime | None) -> float:
    """Seconds of a fit until `until`, set-up and validation included; 0 where it trained nothing or is not known."""
    if not row["epochs"] and row["status"] == "finished":
        return 0.0
    if row["attempts"] not in (None, 1) or row["status"] == "interrupted":  # pauses between two tries do not count
        return row["train_seconds"] or 0.0
    return (until - row["started_at"]).total_seconds() if until is not None and row["started_at"] is not None else 0.0
