"""The report's tables by column, as the HTML page takes them: sums and quotients that are made here or there, once.

D tasks, V fits over tau, G points of a curve.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bora_sweep.config import flatten
from bora_sweep.config.yaml import dump_yaml
from bora_sweep.errors import redact
from bora_sweep.report.frames import overall_frame
from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.gains import Gain
from bora_sweep.report.stats.pool_trials import perplexities
from bora_sweep.report.stats.smooth_curve import SmoothCurve
from bora_sweep.report.stats.summary import SPLITS, Summary, structure_of
from bora_sweep.report.stats.trends import Trend
from bora_sweep.report.text.setting_names import setting_name

MOST_TAUS = 24
"""Values of tau at which the page has each task's perplexity: both ends, the best, others spread evenly."""
MOST_POINTS = 8_000
"""Of all learning curves together; a curve keeps 12 in any case, its first, best and last epoch among them."""
_SMOOTH = 51
_TRIAL = [
    *("run", "trial_id", "status", "method", "tau", "seed", "lora_rank", "learning_rate", "attempts", "epochs"),
    *("best_epoch", "stopped_by", "validation_perplexity", "test_perplexity", "train_tokens", "train_seconds"),
    *("tokens_per_second", "peak_memory_bytes", "device", "reported_perplexity", "reported_as", "error", "notes"),
]

Columns = dict[str, Any]


def by_column(frame: pd.DataFrame) -> Columns:
    """A table as its columns; what is not known is None."""
    known = frame.astype(object).where(frame.notna(), None)
    return {str(name): known[name].tolist() for name in known}


def tau_columns(analysis: Analysis) -> Columns:
    """Table 1, with the epochs of each seed."""
    summary = analysis.summary
    settings = [summary.settings[m] for m in (summary.zero_shot, *summary.fits) if m is not None]
    return by_column(overall_frame(analysis).drop(columns="floor_test_perplexity")) | {
        "epochs": [setting.epochs for setting in settings],
        "best_epochs": [setting.best_epochs for setting in settings],
    }


def task_columns(analysis: Analysis) -> Columns:
    """Sizes, perplexities at the ends and the best, over tau where it is shown, and the distance of Figure 4."""
    summary = analysis.summary
    named = {"independent": summary.independent, "shared": summary.shared, "best": summary.best}
    shown = spread(summary.fits, {summary.fits[0], summary.best, summary.fits[-1]}, MOST_TAUS)
    between = summary.best_between
    low_D, high_D = (bound_DM[:, summary.best] for bound_DM in analysis.task_levels.perplexity_bounds)
    return {
        "name": summary.tasks,
        "documents": {split: summary.num_documents_DL[:, i] for i, split in enumerate(SPLITS)},
        "tokens": {split: summary.num_tokens_DL[:, i] for i, split in enumerate(SPLITS)},
        "perplexity": {name: summary.perplexity_DM[:, m] for name, m in named.items() if m is not None},
        "best_low": low_D,
        "best_high": high_D,
        "floor": summary.floor_D,
        "distance": None if between is None else summary.distance_DM[:, between],
        "taus": [summary.settings[m].tau for m in shown],
        "over_tau": summary.perplexity_DM[:, shown],
    }


def spread(items: Sequence[int], kept: set[int], most: int) -> list[int]:
    """All of `items`; of more than `most`, those in `kept` and others at even steps."""
    if len(items) <= most:
        return list(items)
    steps = set(np.linspace(0, len(items) - 1, most - len(kept)).round().astype(int).tolist())
    return [item for n, item in enumerate(items) if item in kept or n in steps]


def gain_columns(gains: list[Gain]) -> dict[str, Columns]:
    """By reference, each task's gain with its interval and verdict, in the order of the tasks."""
    return {
        reference: {
            "improvement": [gain.interval.estimate for gain in own],
            "low": [gain.interval.low for gain in own],
            "high": [gain.interval.high for gain in own],
            "adjusted_p": [gain.adjusted_p for gain in own],
            "verdict": [gain.verdict for gain in own],
        }
        for reference in ("independent", "shared")
        if (own := [gain for gain in gains if gain.reference == reference])
    }


def smooth_columns(curve: SmoothCurve | None) -> Columns | None:
    """The smooth curve over tau as perplexities, with its band."""
    if curve is None:
        return None
    at_G = np.linspace(0, len(curve.tau_G) - 1, _SMOOTH).round().astype(int)
    values = {"perplexity": curve.nats_per_token_G, "low": curve.band[0], "high": curve.band[1]}
    return {"tau": curve.tau_G[at_G]} | {name: np.exp(nats_G[at_G]) for name, nats_G in values.items()}


def trend_columns(trends: dict[str, Trend]) -> dict[str, Columns]:
    """Each regression's slope per doubling of the documents, and its line with the band."""
    columns = {}
    for name, trend in trends.items():
        documents_G = np.geomspace(trend.low_documents, trend.high_documents, 25)
        middle, low, high = trend.line(documents_G)
        slope = [trend.slope.estimate, trend.slope.low, trend.slope.high]
        columns[name] = {"slope": slope, "documents": documents_G, "middle": middle, "low": low, "high": high}
    return columns


def split_columns(summary: Summary) -> Columns:
    """Documents and scored tokens of each split."""
    documents_DL = summary.num_documents_DL
    return {
        "split": SPLITS,
        "documents": documents_DL.sum(axis=0),
        "tokens": summary.num_tokens_DL.sum(axis=0),
        "fewest": documents_DL.min(axis=0),
        "median": np.median(documents_DL, axis=0),
        "most": documents_DL.max(axis=0),
    }


def trial_columns(summary: Summary) -> Columns:
    """Columns of `trials`, what each fit is, and the hours of CPUs and GPUs that its training held."""
    trials = summary.trials.sort_values(["run", "trial_id"])
    rows = trials.to_dict("records")
    hours = np.array([device_hours(row) for row in rows]).reshape(-1, 2)
    error = [None if pd.isna(row["error"]) else redact(row["error"]) for row in rows]
    return by_column(trials.loc[:, _TRIAL]) | {
        "error": error,
        "fit": [setting_name(row["method"], row["tau"], structure_of(row), summary.structure) for row in rows],
        "cpu_hours": hours[:, 0],
        "gpu_hours": hours[:, 1],
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


def learning_curves(curves: pd.DataFrame, trials: Columns) -> list[Columns]:
    """Of each trial that has them, in the order of `trials`: its number there, and perplexity by epoch and split."""
    groups = dict(iter(curves.groupby(["run", "trial_id", "split"], sort=False)))
    most = max(12, MOST_POINTS // max(1, len(groups)))
    found = []
    for n, (run, trial_id, best) in enumerate(
        zip(*(trials[k] for k in ("run", "trial_id", "best_epoch")), strict=True)
    ):
        for split in ("train", "validation"):
            if (run, trial_id, split) in groups:
                rows = groups[run, trial_id, split].sort_values("epoch")
                at_best = set(np.flatnonzero(rows["epoch"] == best).tolist())
                rows = rows.iloc[spread(range(len(rows)), {0, len(rows) - 1} | at_best, most)]
                perplexity = perplexities(rows["nll_nats"].to_numpy(float), rows["num_tokens"].to_numpy(float))
                found.append({"trial": n, "split": split, "epoch": rows["epoch"].tolist(), "perplexity": perplexity})
    return found


def configuration(summary: Summary) -> Columns:
    """The best fit's whole configuration as YAML, which of its keys differ between trials, and the versions used."""
    rows = {(row["run"], row["trial_id"]): row for row in summary.trials.to_dict("records")}
    best = rows[summary.settings[summary.best].trials[0]]
    flat = [flatten(json.loads(row["config_json"])) for row in rows.values() if isinstance(row["config_json"], str)]
    values = json.loads(best["config_json"]) if isinstance(best["config_json"], str) else {}
    return {
        "trial": best["trial_id"],
        "yaml": redact(dump_yaml(values)) if values else "",
        "differ": sorted({key for one in flat for key in one if any(other.get(key) != one[key] for other in flat)}),
        "versions": _each_once(row["versions"] for row in rows.values()),
        "devices": _each_once(row["device"] for row in rows.values()),
    }


def _each_once(values: Any) -> list[str]:
    return list(dict.fromkeys(value for value in values if isinstance(value, str)))
