"""The settings behind the paper's numbers, and how a run differs from them."""

import json
from typing import Any

from bora_sweep.report.stats.summary import Summary

PAPER_SETTINGS: dict[str, Any] = {
    "protocol": "published_code",
    "data.source": "talk_of_norway",
    "data.selection": "published_code",
    "data.min_characters": 41,
    "model.name": "facebook/opt-350m",
    "model.max_tokens": 128,
    "lora.rank": 16,
    "lora.alpha": 16.0,
    "lora.target_modules": ["q_proj", "v_proj"],
    "prior.parametrization": "centered",
    "train.lr_per_tau": 1e-5,
    "train.learning_rate": 1e-4,
    "train.batch_size": 64,
    "train.max_grad_norm": None,
    "train.max_epochs": 1000,
    "train.patience": 8,
}
"""In this package's keys."""


def settings_that_differ(summary: Summary) -> list[tuple[str, Any, Any]]:
    """(key, the paper's value, the run's value) of the best fit. A model in a folder goes by the folder's name."""
    run, trial = summary.settings[summary.best].trials[0]
    rows = summary.trials
    (text,) = rows.loc[(rows["run"] == run) & (rows["trial_id"] == trial), "config_json"]
    config = json.loads(text) if isinstance(text, str) else {}
    values = [(key, paper, _value_at(config, key)) for key, paper in PAPER_SETTINGS.items()]
    return [(key, paper, ours) for key, paper, ours in values if _comparable(key, paper) != _comparable(key, ours)]


def _comparable(key: str, value: Any) -> Any:
    return str(value).rstrip("/").rpartition("/")[2] if key == "model.name" else value


def _value_at(config: dict[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    return config.get(section, {}).get(name) if name else config.get(section)
