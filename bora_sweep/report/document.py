"""What the HTML page shows, as one JSON document: numbers of the report's own tables, by column, and its words.

D tasks, V fits over tau. A number is rounded to six significant digits; NaN is null, infinity the text `Infinity`.
"""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import yaml
from markdown_it import MarkdownIt

from bora_sweep.errors import redact
from bora_sweep.report import tables
from bora_sweep.report.formats import markdown_text, number_text, perplexity_text, tau_text
from bora_sweep.report.pooling import SPLITS, TRAIN, Summary, structure_of
from bora_sweep.report.statistics import Bootstrap

MOST_TAUS = 24
"""Values of tau at which the page has each task's perplexity: both ends, the best, others spread evenly."""
MOST_POINTS = 6_000
"""Of all learning curves together; a curve keeps 12 in any case, its first, best and last epoch among them."""
_DIGITS = 6
_MARKDOWN = MarkdownIt("commonmark")

Words = list[list[tuple[str, str]]]  # paragraphs of (style, text); a style is "", strong, em or an address of a table


def words(markdown: str) -> Words:
    """Paragraphs of the report as the text that a reader sees, each run of it with its style."""
    paragraphs = []
    for token in _MARKDOWN.parse(markdown):
        if token.type == "inline":
            paragraphs.append(_runs(token.children or []))
    return paragraphs


def _runs(children: Iterable[Any]) -> list[tuple[str, str]]:
    runs, style = [], ""
    for child in children:
        if child.type in ("strong_open", "em_open"):
            style = child.type.removesuffix("_open")
        elif child.type == "link_open":
            style = child.attrs["href"]
        elif child.type.endswith("_close"):
            style = ""
        else:
            runs.append((style, child.content or " "))
    return runs


def make_document(
    summary: Summary,
    bootstrap: Bootstrap,
    gains: list[tables.Gain],
    methods: pd.DataFrame,
    curves: pd.DataFrame,
    said: dict[str, str],
) -> dict[str, Any]:
    """The document.

    Args:
        summary: Of the run, or of several.
        bootstrap: Of its test documents.
        gains: `task_gains` of them.
        methods: `method_numbers`; empty where there is nothing to compare.
        curves: The table `curves`.
        said: Markdown for each place in the page.
    """
    trials = trial_columns(summary)
    roles = {"independent": summary.independent, "shared": summary.shared, "best": summary.best}
    return {
        "runs": list(dict.fromkeys(folder_name(run) for run in summary.trials["run"])),
        "words": {name: words(text) for name, text in said.items()} | {"cost": words(_cost(trials))},
        "facts": _facts(summary, bootstrap, trials),
        "best_tau": summary.best_tau,
        "zero_shot": math.nan if summary.zero_shot is None else summary.settings[summary.zero_shot].test_perplexity,
        "floor": summary.floor,
        "role_trials": {role: [] if m is None else summary.settings[m].trials for role, m in roles.items()},
        "taus": tau_columns(summary, bootstrap),
        "tasks": task_columns(summary),
        "gains": gain_columns(summary, gains),
        "methods": None if methods.empty else by_column(methods.astype(object)),
        "splits": split_columns(summary),
        "trials": trials,
        "curves": learning_curves(curves, trials),
        "configuration": configuration(summary),
    }


def folder_name(run: str) -> str:
    """The last part of a run's folder or address."""
    return run.rstrip("/").rpartition("/")[2] or run


def _facts(summary: Summary, bootstrap: Bootstrap, trials: dict[str, list[Any]]) -> list[tuple[str, str, str]]:
    """Name, value and a remark, for the row below the answer."""
    test = bootstrap.perplexity(summary.best)
    finished = trials["status"].count("finished")
    sizes_D = summary.train_documents_D
    return [
        ("Best τ", tau_text(summary.best_tau), "on validation"),
        (
            "Test perplexity",
            perplexity_text(test.estimate),
            f"95% interval {perplexity_text(test.low)} to {perplexity_text(test.high)}",
        ),
        ("Tasks", number_text(len(summary.tasks)), f"{sizes_D.min():,.0f} to {sizes_D.max():,.0f} documents each"),
        (
            "Training documents",
            number_text(float(sizes_D.sum())),
            f"{number_text(float(summary.num_tokens_DL[:, TRAIN].sum()))} tokens",
        ),
        ("Trials", f"{finished:,} finished", f"of {len(trials['status']):,} begun"),
        ("Training took", _hours(trials["train_seconds"]), "all trials added up"),
    ]


def _cost(trials: dict[str, list[Any]]) -> str:
    states = trials["status"]
    counts = ", ".join(f"{states.count(status):,} {status}" for status in sorted(set(states)))
    tokens = sum(value for value in trials["train_tokens"] if value is not None)
    device = [
        f"{_sum([hours * 3600 for hours in trials[name]]) / 3600:,.3g} {label}-hours"
        for name, label in (("gpu_hours", "GPU"), ("cpu_hours", "CPU"))
        if _sum(trials[name])
    ]
    held = f", {' and '.join(device)}" if device else ""
    return (
        f"{len(states):,} trials ({markdown_text(counts, 200)}): {tokens:,.0f} tokens trained on in "
        f"{_hours(trials['train_seconds'])} of training{held}."
    )


def _hours(seconds: list[float | None]) -> str:
    total = _sum(seconds)
    return f"{total:,.0f} s" if total < 120 else f"{total / 60:,.0f} min" if total < 7200 else f"{total / 3600:,.1f} h"


def _sum(values: list[float | None]) -> float:
    return float(np.nansum([math.nan if value is None else value for value in values]))


def gain_columns(summary: Summary, gains: list[tables.Gain]) -> dict[str, dict[str, list[Any]]]:
    """By reference, each task's gain with its interval, in the order of the tasks."""
    assert len({gain.reference for gain in gains}) * len(summary.tasks) == len(gains)
    columns: dict[str, dict[str, list[Any]]] = {}
    for gain in gains:
        own = columns.setdefault(gain.reference, {name: [] for name in ("improvement", "low", "high")})
        for name, value in zip(own, (gain.interval.estimate, gain.interval.low, gain.interval.high), strict=True):
            own[name].append(value)
    return columns


def to_json(document: dict[str, Any]) -> str:
    """ASCII without <, > and &: within a `script` element nothing in it can end the element or begin a comment."""
    text = json.dumps(_plain(document), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&"})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, np.ndarray, pd.Series)):
        return [_plain(part) for part in value]
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, (float, np.floating)):
        return _rounded(float(value))
    return value.item() if isinstance(value, np.generic) else value


def _rounded(value: float) -> float | int | str | None:
    if math.isnan(value):
        return None
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    rounded = float(f"{value:.{_DIGITS}g}") if abs(value) < 10**_DIGITS else round(value)
    return int(rounded) if rounded == int(rounded) else rounded


def by_column(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """A table as its columns."""
    return {str(name): frame[name].tolist() for name in frame}


def tau_columns(summary: Summary, bootstrap: Bootstrap) -> dict[str, list[Any]]:
    """Table 1, and the interval of each perplexity taken alone."""
    settings = [m for m in (summary.zero_shot, *summary.fits) if m is not None]
    alone = [bootstrap.perplexity(m) for m in settings]
    return by_column(tables.overall_numbers(summary, bootstrap).drop(columns="floor_test_perplexity")) | {
        "epochs": [summary.settings[m].epochs for m in settings],
        "best_epochs": [summary.settings[m].best_epochs for m in settings],
        "test_low": [interval.low for interval in alone],
        "test_high": [interval.high for interval in alone],
    }


def task_columns(summary: Summary) -> dict[str, Any]:
    """Sizes, perplexities at the ends and the best, over tau where it is shown, and the distance of Figure 4."""
    named = {"independent": summary.independent, "shared": summary.shared, "best": summary.best}
    shown = spread(summary.fits, {summary.fits[0], summary.best, summary.fits[-1]}, MOST_TAUS)
    between = summary.best_between
    return {
        "name": summary.tasks,
        "documents": {split: summary.num_documents_DL[:, i] for i, split in enumerate(SPLITS)},
        "tokens": {split: summary.num_tokens_DL[:, i] for i, split in enumerate(SPLITS)},
        "perplexity": {name: summary.perplexity_DM[:, m] for name, m in named.items() if m is not None},
        "floor": summary.floor_D,
        "distance": None if between is None else summary.distance_DM[:, between],
        "distance_tau": None if between is None else summary.settings[between].tau,
        "taus": [summary.settings[m].tau for m in shown],
        "over_tau": summary.perplexity_DM[:, shown],
    }


def spread(items: Sequence[int], kept: set[int], most: int) -> list[int]:
    """All of `items`, or `kept` and others at even steps: `most` of them, or a few fewer."""
    if len(items) <= most:
        return list(items)
    steps = np.linspace(0, len(items) - 1, most - len(kept)).round().astype(int)
    return [item for n, item in enumerate(items) if item in kept or n in steps]


def split_columns(summary: Summary) -> dict[str, list[Any]]:
    """Documents and scored tokens of each split."""
    documents_DL = summary.num_documents_DL
    return {
        "split": SPLITS,
        "documents": documents_DL.sum(axis=0).tolist(),
        "tokens": summary.num_tokens_DL.sum(axis=0).tolist(),
        "fewest": documents_DL.min(axis=0).tolist(),
        "median": np.median(documents_DL, axis=0).tolist(),
        "most": documents_DL.max(axis=0).tolist(),
    }


_TRIAL = [
    *("trial_id", "status", "method", "tau", "seed", "lora_rank", "learning_rate", "attempts", "epochs", "best_epoch"),
    *("stopped_by", "validation_perplexity", "test_perplexity", "train_tokens", "train_seconds", "tokens_per_second"),
    *("peak_memory_bytes", "device", "error", "notes"),
]


def trial_columns(summary: Summary) -> dict[str, list[Any]]:
    """Columns of `trials`, what each fit is, and the hours of CPUs and GPUs that its training held."""
    trials = summary.trials.sort_values(["tau", "seed", "trial_id"], na_position="first")
    rows = trials.to_dict("records")
    hours = np.array([device_hours(row) for row in rows]).reshape(-1, 2)
    return by_column(trials[["run", *_TRIAL]].astype(object).where(trials[["run", *_TRIAL]].notna(), None)) | {
        "fit": [tables.fit_text(row["method"], row["tau"], structure_of(row), summary.structure) for row in rows],
        "cpu_hours": hours[:, 0].tolist(),
        "gpu_hours": hours[:, 1].tolist(),
        "started_at": [None if pd.isna(at) else f"{at:%Y-%m-%d %H:%M:%S}" for at in trials["started_at"]],
    }


def device_hours(row: dict[Any, Any]) -> tuple[float, float]:
    """CPU-hours and GPU-hours: `train_seconds` times what the trial's configuration reserves; NaN where not known."""
    if not isinstance(row["config_json"], str) or math.isnan(row["train_seconds"]):
        return math.nan, math.nan
    ray = json.loads(row["config_json"]).get("ray", {})
    has_gpu = str(row["device"]).startswith("cuda")
    hours = row["train_seconds"] / 3600 * ray.get("workers_per_trial", 1)
    gpus = ray.get("gpus_per_trial")
    return hours * ray.get("cpus_per_trial", 1), hours * (0 if not has_gpu else 1 if gpus is None else gpus)


def learning_curves(curves: pd.DataFrame, trials: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Of each trial that has them, in the order of `trials`: its number there, and perplexity by epoch and split."""
    groups = {key: rows for key, rows in curves.groupby(["run", "trial_id", "split"], sort=False)}
    most = max(12, MOST_POINTS // max(1, len(groups)))
    found = []
    for n, (run, trial_id, best) in enumerate(
        zip(trials["run"], trials["trial_id"], trials["best_epoch"], strict=True)
    ):
        for split in ("train", "validation"):
            rows = groups.get((run, trial_id, split))
            if rows is None:
                continue
            rows = rows.sort_values("epoch")
            epochs = rows["epoch"].tolist()
            kept = spread(range(len(rows)), {0, len(rows) - 1} | {i for i, e in enumerate(epochs) if e == best}, most)
            with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
                perplexity = np.exp(rows["nll_nats"].to_numpy(float) / rows["num_tokens"].to_numpy(float))
            epochs = [epochs[i] for i in kept]
            found.append({"trial": n, "split": split, "epoch": epochs, "perplexity": perplexity[kept]})
    return found


def configuration(summary: Summary) -> dict[str, Any]:
    """The best fit's whole configuration as YAML, which of its keys differ between trials, and the versions used."""
    rows = {(row["run"], row["trial_id"]): row for row in summary.trials.to_dict("records")}
    best = rows[summary.settings[summary.best].trials[0]]
    flat = [_flat(json.loads(row["config_json"])) for row in rows.values() if isinstance(row["config_json"], str)]
    differ = sorted({key for other in flat for key in other if any(o.get(key) != other[key] for o in flat)})
    values = json.loads(best["config_json"]) if isinstance(best["config_json"], str) else {}
    versions = dict.fromkeys(row["versions"] for row in rows.values() if isinstance(row["versions"], str))
    devices = dict.fromkeys(row["device"] for row in rows.values() if isinstance(row["device"], str))
    return {
        "trial": best["trial_id"],
        "yaml": redact(yaml.safe_dump(values, sort_keys=False, allow_unicode=True)) if values else "",
        "differ": differ,
        "versions": list(versions),
        "devices": list(devices),
    }


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
