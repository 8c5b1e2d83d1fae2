"""The page's trials: their table with what they cost, their learning curves, and their configuration."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bora_sweep.config.yaml import dump_yaml
from bora_sweep.errors import redact
from bora_sweep.report.html.tables import Column, PageTable, numbers
from bora_sweep.report.stats.summary import Summary, structure_of
from bora_sweep.report.text import tables
from bora_sweep.report.text.formats import hours_text, perplexity_text, visible

MOST_POINTS = 8_000
"""Of all learning curves together; a curve keeps 12 in any case, its first, best and last epoch among them."""
_DASH = "–"


def trial_frame(summary: Summary) -> pd.DataFrame:
    """The table `trials` in the order of the page, with `fit` in words, `cpu_hours` and `gpu_hours`."""
    trials = summary.trials.sort_values(["run", "trial_id"], ignore_index=True)
    rows = trials.to_dict("records")
    hours = np.array([device_hours(row) for row in rows]).reshape(-1, 2)
    return trials.assign(
        error=[None if pd.isna(row["error"]) else redact(row["error"]) for row in rows],
        fit=[tables.fit_text(row["method"], row["tau"], structure_of(row), summary.structure) for row in rows],
        cpu_hours=hours[:, 0],
        gpu_hours=hours[:, 1],
    )


def device_hours(row: dict[Any, Any]) -> tuple[float, float]:
    """CPU-hours and GPU-hours: `train_seconds` times what the trial's configuration reserves; NaN where not known."""
    if not isinstance(row["config_json"], str) or math.isnan(row["train_seconds"]):
        return math.nan, math.nan
    ray = json.loads(row["config_json"]).get("ray", {})
    hours = row["train_seconds"] / 3600 * ray.get("workers_per_trial", 1)
    asked = ray.get("gpus_per_trial")
    gpus = (1 if asked is None else asked) if str(row["device"]).startswith("cuda") else 0
    return hours * ray.get("cpus_per_trial", 1), hours * gpus


def trial_table(trials: pd.DataFrame) -> PageTable:
    """Every trial, finished or not; columns of which no trial has a value are left out."""
    known = {name for name in trials if _has_values(trials[name])}
    best_epoch = _whole(trials["best_epoch"])
    epochs = [
        _DASH if total == _DASH else f"{total} ({best})"
        for total, best in zip(_whole(trials["epochs"]), best_epoch, strict=True)
    ]
    names = [
        f"{fit if method != 'map' else f'τ = {fit}'}, trial {visible(trial)}"
        for method, fit, trial in zip(trials["method"], trials["fit"], trials["trial_id"], strict=True)
    ]
    columns = [
        Column("trial_id", "Trial", [visible(trial) for trial in trials["trial_id"]], kind="name"),
        *(_texts("run", "Run", trials) if trials["run"].nunique() > 1 else []),
        *_texts("status", "State", trials, "state"),
        Column("fit", "τ, or method", list(trials["fit"]), trials["tau"].to_numpy(float, na_value=np.nan)),
        Column("seed", "Seed", _whole(trials["seed"]), _floats(trials["seed"])),
        Column("epochs", "Epochs (best)", epochs, _floats(trials["epochs"])),
        *_texts("stopped_by", "Ended by", trials),
        numbers("validation_perplexity", "Validation", trials["validation_perplexity"], perplexity_text),
        numbers("test_perplexity", "Test", trials["test_perplexity"], perplexity_text),
        numbers("train_tokens", "Tokens", trials["train_tokens"]),
        numbers("tokens_per_second", "Tokens/s", trials["tokens_per_second"]),
        numbers("train_seconds", "Seconds", trials["train_seconds"]),
        *([numbers("gpu_hours", "GPU time", trials["gpu_hours"], hours_text)] if "gpu_hours" in known else []),
        numbers("cpu_hours", "CPU time", trials["cpu_hours"], hours_text),
        numbers("peak_memory_bytes", "Memory", trials["peak_memory_bytes"], _memory_text),
        *(_reported(trials) if "reported_perplexity" in known else []),
        *(_texts("error", "Error", trials, "long", missing="") if "error" in known else []),
        *(_texts("notes", "Notes", trials, "long", missing="") if "notes" in known else []),
        Column("name", "", names, kind="hidden"),
        Column("best_epoch", "", best_epoch, _floats(trials["best_epoch"]), kind="hidden"),
    ]
    return PageTable("Trials", columns, sorted_by="trial_id")


def _has_values(values: pd.Series) -> bool:
    return any(value not in ("", 0) for value in values.dropna())


def _floats(values: pd.Series) -> np.ndarray:
    return values.to_numpy(dtype=float, na_value=np.nan)


def _whole(values: pd.Series) -> list[str]:
    return [_DASH if pd.isna(value) else f"{value:.0f}" for value in values]


def _texts(name: str, title: str, trials: pd.DataFrame, kind: str = "text", missing: str = _DASH) -> list[Column]:
    return [Column(name, title, [missing if pd.isna(text) else str(text) for text in trials[name]], kind=kind)]


def _reported(trials: pd.DataFrame) -> list[Column]:
    values = numbers("reported_perplexity", "By the protocol", trials["reported_perplexity"], perplexity_text)
    return [values, *_texts("reported_as", "which is", trials)]


def _memory_text(num_bytes: float) -> str:
    return _DASH if math.isnan(num_bytes) else f"{num_bytes / 2**20:,.0f} MiB"


def cost_text(trials: pd.DataFrame) -> str:
    """What all trials took, in one sentence."""
    counts = ", ".join(f"{n:,} {status}" for status, n in sorted(trials["status"].value_counts().items()))
    hours = {kind: trials[f"{kind}_hours"].sum() for kind in ("gpu", "cpu")}
    reserved = [f"{value:,.3g} {kind.upper()}-hours" for kind, value in hours.items() if value]
    return (
        f"{len(trials):,} trials ({counts}): {trials['train_tokens'].sum():,.0f} tokens trained on, "
        f"{duration_text(trials['train_seconds'].sum())}{', ' if reserved else ''}{' and '.join(reserved)}."
    )


def duration_text(seconds: float) -> str:
    """In seconds below two minutes, in minutes below two hours."""
    if seconds < 120:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def learning_curves(curves: pd.DataFrame, trials: pd.DataFrame) -> list[dict[str, Any]]:
    """Perplexity by epoch, of each trial and split that has a curve; `trial` is the row in `trials`."""
    groups = dict(iter(curves.groupby(["run", "trial_id", "split"], sort=False)))
    most = max(12, MOST_POINTS // max(1, len(groups)))
    shown = []
    for n, (run, trial_id, best) in enumerate(trials[["run", "trial_id", "best_epoch"]].itertuples(index=False)):
        for split in ("train", "validation"):
            if (run, trial_id, split) in groups:
                rows = groups[run, trial_id, split].sort_values("epoch")
                at_best = set(np.flatnonzero(rows["epoch"] == best).tolist())
                rows = rows.iloc[spread(range(len(rows)), {0, len(rows) - 1} | at_best, most)]
                with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
                    perplexity = np.exp(rows["nll_nats"].to_numpy(float) / rows["num_tokens"].to_numpy(float))
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
    flat = [_flat(json.loads(row["config_json"])) for row in rows.values() if isinstance(row["config_json"], str)]
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


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
