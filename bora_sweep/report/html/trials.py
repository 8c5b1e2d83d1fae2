"""The page's trials: their table with what they cost, their learning curves, and their configuration."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bora_sweep.config import flatten
from bora_sweep.config.yaml import dump_yaml
from bora_sweep.errors import redact
from bora_sweep.report.html.tables import Column, PageTable, numbers
from bora_sweep.report.stats.measure import measure_of
from bora_sweep.report.stats.pool_trials import perplexities
from bora_sweep.report.stats.summary import Summary, structure_of
from bora_sweep.report.text.formats import hours_text, level_text, perplexity_text, visible
from bora_sweep.report.text.measured import plain_label
from bora_sweep.report.text.setting_names import setting_name

MOST_POINTS = 8_000
"""Of all learning curves together; a curve keeps 12 in any case, its first, best and last epoch among them."""
_DASH = "–"


Columns = dict[str, list[Any]]
"""The table `trials` by column, in the order of the page; what is not known is None."""


def trial_columns(summary: Summary) -> Columns:
    """The table `trials`, with `fit` in words, `cpu_hours` and `gpu_hours`."""
    trials = summary.trials.sort_values(["run", "trial_id"])
    rows = trials.to_dict("records")
    hours = [device_hours(row) for row in rows]
    known = trials.astype(object).where(trials.notna(), None)
    return {str(name): known[name].tolist() for name in known} | {
        "error": [None if pd.isna(row["error"]) else redact(row["error"]) for row in rows],
        "fit": [setting_name(row["method"], row["tau"], structure_of(row), summary.structure) for row in rows],
        "cpu_hours": [cpu for cpu, _ in hours],
        "gpu_hours": [gpu for _, gpu in hours],
    }


def device_hours(row: dict[Any, Any]) -> tuple[float, float]:
    """CPU-hours and GPU-hours: `train_seconds` times what the trial's configuration reserves; NaN where not known."""
    if not isinstance(row["config_json"], str) or math.isnan(row["train_seconds"]):
        return math.nan, math.nan
    ray = json.loads(row["config_json"]).get("ray", {})
    hours = row["train_seconds"] / 3600 * ray.get("workers_per_trial", 1)
    asked = ray.get("gpus_per_trial")
    gpus = (1 if asked is None else asked) if str(row["device"]).startswith("cuda") else 0
    return hours * ray.get("cpus_per_trial", 1), hours * gpus


def trial_table(trials: Columns) -> PageTable:
    """Every trial, finished or not; some columns are left out where no trial has a value."""
    names = [
        f"{fit if method != 'map' else f'τ = {fit}'}, trial {visible(trial)}"
        for method, fit, trial in zip(trials["method"], trials["fit"], trials["trial_id"], strict=True)
    ]
    best_epochs = [_whole_text(epoch) for epoch in trials["best_epoch"]]
    epochs = [
        _DASH if total is None else f"{total:.0f} ({best})"
        for total, best in zip(trials["epochs"], best_epochs, strict=True)
    ]
    columns = [
        Column("trial_id", "Trial", [visible(trial) for trial in trials["trial_id"]], kind="name"),
        *(_texts("run", "Run", trials) if len(set(trials["run"])) > 1 else []),
        *_texts("status", "State", trials, "state"),
        Column("fit", "τ, or method", trials["fit"], trials["tau"]),
        numbers("seed", "Seed", trials["seed"], _whole_text),
        Column("epochs", "Epochs (best)", epochs, trials["epochs"]),
        *_texts("stopped_by", "Ended by", trials),
        *_scores(trials),
        numbers("train_tokens", "Tokens", trials["train_tokens"]),
        numbers("tokens_per_second", "Tokens/s", trials["tokens_per_second"]),
        numbers("train_seconds", "Seconds", trials["train_seconds"]),
        *_if_known(trials, numbers("gpu_hours", "GPU time", trials["gpu_hours"], hours_text)),
        numbers("cpu_hours", "CPU time", trials["cpu_hours"], hours_text),
        numbers("peak_memory_bytes", "Memory", trials["peak_memory_bytes"], _memory_text),
        *_if_known(
            trials, numbers("reported_perplexity", "By the protocol", trials["reported_perplexity"], perplexity_text)
        ),
        *_if_known(trials, *_texts("reported_as", "which is", trials)),
        *_if_known(trials, *_texts("error", "Error", trials, "long", missing="")),
        *_if_known(trials, *_texts("notes", "Notes", trials, "long", missing="")),
        Column("name", "", names, kind="hidden"),
        Column("best_epoch", "", None, trials["best_epoch"], "hidden"),
    ]
    return PageTable("Trials", columns, sorted_by="trial_id")


def _scores(trials: Columns) -> list[Column]:
    """Perplexity, and the mean score by each metric, of both splits."""
    splits = {"Validation": "validation", "Test": "test"}
    means = {split: [json.loads(row or "{}") for row in trials[f"{split}_metrics"]] for split in splits.values()}
    metrics = [measure_of(name) for name in sorted({name for rows in means.values() for row in rows for name in row})]
    of = ", perplexity" if metrics else ""
    columns = [
        numbers(f"{split}_perplexity", f"{heading}{of}", trials[f"{split}_perplexity"], perplexity_text)
        for heading, split in splits.items()
    ]
    for metric in metrics:
        for heading, split in splits.items():
            values = [row.get(metric.name) for row in means[split]]
            title = f"{heading}, {plain_label(metric)}"
            columns.append(numbers(f"{split}_{metric.name}", title, values, level_text(metric)))
    return columns


def _if_known(trials: Columns, column: Column) -> list[Column]:
    """The column, if a trial has a value of it."""
    return [column] if any(value not in (None, "", 0) and value == value for value in trials[column.name]) else []


def _texts(name: str, title: str, trials: Columns, kind: str = "text", missing: str = _DASH) -> list[Column]:
    return [Column(name, title, [missing if text is None else str(text) for text in trials[name]], kind=kind)]


def _whole_text(value: float | None) -> str:
    return _DASH if value is None or math.isnan(value) else f"{value:.0f}"


def _memory_text(num_bytes: float) -> str:
    return _DASH if math.isnan(num_bytes) else f"{num_bytes / 2**20:,.0f} MiB"


def cost_text(trials: Columns) -> str:
    """What all trials took, in one sentence."""
    states = trials["status"]
    counts = ", ".join(f"{states.count(state):,} {state}" for state in sorted(set(states)))
    hours = {kind: total(trials[f"{kind}_hours"]) for kind in ("gpu", "cpu")}
    reserved = [f"{value:,.3g} {kind.upper()}-hours" for kind, value in hours.items() if value]
    return (
        f"{len(states):,} trials ({counts}): {total(trials['train_tokens']):,.0f} tokens trained on, "
        f"{duration_text(total(trials['train_seconds']))}{', ' if reserved else ''}{' and '.join(reserved)}."
    )


def total(values: Iterable[float | None]) -> float:
    """The sum of what is known."""
    return sum(value for value in values if value is not None and not math.isnan(value))


def duration_text(seconds: float) -> str:
    """In seconds below two minutes, in minutes below two hours."""
    if seconds < 120:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def learning_curves(curves: pd.DataFrame, trials: Columns) -> list[dict[str, Any]]:
    """Perplexity by epoch, of each trial and split that has a curve; `trial` is the row in `trials`."""
    groups = dict(iter(curves.groupby(["run", "trial_id", "split"], sort=False)))
    most = max(12, MOST_POINTS // max(1, len(groups)))
    shown = []
    for n, (run, trial_id, best) in enumerate(
        zip(*(trials[name] for name in ("run", "trial_id", "best_epoch")), strict=True)
    ):
        for split in ("train", "validation"):
            if (run, trial_id, split) in groups:
                rows = groups[run, trial_id, split].sort_values("epoch")
                at_best = set(np.flatnonzero(rows["epoch"] == best).tolist())
                rows = rows.iloc[spread(range(len(rows)), {0, len(rows) - 1} | at_best, most)]
                perplexity = perplexities(rows["nll_nats"].to_numpy(float), rows["num_tokens"].to_numpy(float))
                shown.append({"trial": n, "split": split, "epoch": rows["epoch"].tolist(), "perplexity": perplexity})
    return shown


def spread(items: Sequence[int], kept: set[int], most: int) -> list[int]:
    """All of `items`; of more than `most`, those in `kept` and others at even steps."""
    if len(items) <= most:
        return list(items)
    steps = set(np.linspace(0, len(items) - 1, most - len(kept)).round().astype(int).tolist())
    return [item for n, item in enumerate(items) if item in kept or n in steps]


def configuration(summary: Summary) -> dict[str, Any]:
    """The best fit's configuration, and the versions used.

    Returns:
        `trial`: the best fit's first. `lines`: its YAML, each line with whether trials differ in its key.
        `differ`: these keys. `versions`: name and version of each package and device.
    """
    rows = {(row["run"], row["trial_id"]): row for row in summary.trials.to_dict("records")}
    best = rows[summary.settings[summary.best].trials[0]]
    flat = [flatten(json.loads(row["config_json"])) for row in rows.values() if isinstance(row["config_json"], str)]
    values = json.loads(best["config_json"]) if isinstance(best["config_json"], str) else {}
    differ = sorted({key for one in flat for key in one if any(other.get(key) != one[key] for other in flat)})
    versions = [pair for text in _each_once(rows, "versions") for pair in json.loads(text).items()]
    return {
        "trial": best["trial_id"],
        "lines": _marked_lines(redact(dump_yaml(values)), set(differ)) if values else [],
        "differ": differ,
        "versions": [(name, str(version)) for name, version in versions]
        + [("device", device) for device in _each_once(rows, "device")],
    }


def _marked_lines(yaml: str, differ: set[str]) -> list[tuple[str, bool]]:
    sections: list[str] = []
    lines = []
    for line in yaml.split("\n"):
        key, colon, _ = line.strip().partition(":")
        is_key = bool(colon) and key.replace("_", "").replace("-", "").isalnum()
        if is_key:
            del sections[(len(line) - len(line.lstrip())) // 2 :]
            sections.append(key)
        lines.append((line, is_key and ".".join(sections) in differ))
    return lines


def _each_once(rows: dict[Any, dict[Any, Any]], name: str) -> Iterable[str]:
    return dict.fromkeys(row[name] for row in rows.values() if isinstance(row[name], str))
