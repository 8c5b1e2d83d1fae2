"""Where a report's numbers come from: base, data, settings, dates and versions. What the results lack is left out."""

import json
from typing import Any

import pandas as pd

from bora_sweep.errors import percentage
from bora_sweep.report.stats.summary import Summary
from bora_sweep.report.text.formats import Table, megabytes_text, number_text
from bora_sweep.runs.inputs import Inputs

EMBEDDED_MODEL, EMBEDDED_DATA = "the embedded model", "the embedded corpus"


def provenance_table(summary: Summary, inputs: Inputs | None) -> Table:
    """Name and value, as plain text.

    Args:
        summary: Of a run, or of several.
        inputs: Digests of its data and base; None where there are several runs.
    """
    trials, best = summary.trials, summary.settings[summary.best].trials[0]
    row = next(row for row in trials.to_dict("records") if (row["run"], row["trial_id"]) == best)
    config = json.loads(row["config_json"]) if isinstance(row["config_json"], str) else {}
    digests = inputs or Inputs(None, None)
    pairs = {
        "Base": _with_digest(model_name(config), digests.model),
        "Weights of the base": _weights(row),
        "Data": _with_digest(_data_name(config), digests.data),
        "Tasks": f"{len(summary.tasks):,}",
        "Documents": _of_splits(summary.num_documents_DL.sum(axis=0)),
        "Tokens that are scored": _of_splits(summary.num_tokens_DL.sum(axis=0)),
        "Tokens cut": "" if pd.isna(row["cut_token_fraction"]) else percentage(float(row["cut_token_fraction"])),
        "Adapters": _adapters(row, config),
        "Learning rate": "" if pd.isna(row["learning_rate"]) else f"{row['learning_rate']:.3g}",
        "Begun": _time(trials["started_at"].min()),
        "Ended": _time(trials["ended_at"].max()),
        "Device": _text(row["device"]),
        "Versions": _versions(trials),
    }
    return Table(["What", "Of this run"], [[name, value] for name, value in pairs.items() if value])


def model_name(config: dict[str, Any]) -> str:
    """The base's name; empty where the results do not hold it."""
    return "" if "model" not in config else config["model"].get("name") or EMBEDDED_MODEL


def _data_name(config: dict[str, Any]) -> str:
    if "data" not in config:
        return ""
    path, source = config["data"].get("path"), config["data"].get("source")
    return (
        EMBEDDED_DATA
        if path is None
        else f"{str(path).rstrip('/').rpartition('/')[2]}{f' ({source})' if source else ''}"
    )


def _with_digest(name: str, digest: str | None) -> str:
    return ", ".join(filter(None, [name, f"fingerprint {digest}" if digest else ""]))


def _of_splits(total_L: Any) -> str:
    """`540: 300 to train on, 80 for validation, 160 for test`."""
    train, validation, test = (number_text(float(total)) for total in total_L)
    return f"{number_text(float(total_L.sum()))}: {train} to train on, {validation} for validation, {test} for test"


def _weights(row: dict[Any, Any]) -> str:
    size = "" if pd.isna(row["base_bytes"]) else megabytes_text(float(row["base_bytes"]))
    return ", ".join(filter(None, [_text(row["dtype"]), size]))


def _adapters(row: dict[Any, Any], config: dict[str, Any]) -> str:
    targets = config.get("lora", {}).get("target_modules")
    known = {
        "": _text(row["lora_variant"]),
        "rank ": _number(row["lora_rank"]),
        "alpha ": _number(row["lora_alpha"]),
        "on ": ", ".join(targets) if isinstance(targets, list) else targets or ("the usual modules" if config else ""),
    }
    return ", ".join(f"{name}{value}" for name, value in known.items() if value)


def _number(value: Any) -> str:
    return "" if pd.isna(value) else f"{value:g}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _time(time: Any) -> str:
    return "" if pd.isna(time) else f"{time:%Y-%m-%d %H:%M} UTC"


def _versions(trials: pd.DataFrame) -> str:
    """Every version of each package, once."""
    found: dict[str, list[str]] = {}
    for text in trials["versions"].dropna().unique():
        for package, version in json.loads(text).items():
            if version not in found.setdefault(package, []):
                found[package].append(version)
    return ", ".join(f"{package} {' and '.join(versions)}" for package, versions in found.items())
