"""What each way to serve costs: adapters, megabytes, and the base that they share."""

import json
from typing import Any

import pandas as pd

from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.recommendation import Option, Recommendation
from bora_sweep.report.stats.summary import Summary
from bora_sweep.report.text.formats import (
    Table,
    level_interval_text,
    markdown_table,
    markdown_text,
    megabytes_text,
)
from bora_sweep.report.text.measured import plain_label
from bora_sweep.report.text.provenance import model_name
from bora_sweep.report.text.recommendation import option_name


def serving_cost(analysis: Analysis, made: Recommendation) -> str:
    """A table of the ways to serve with what they cost, and a sentence on the base and the adapters."""
    return f"{markdown_table(cost_table(analysis, made), limit=160)}\n\n{about_cost(analysis.summary, made)}"


def cost_table(analysis: Analysis, made: Recommendation) -> Table:
    """A row for each way to serve, the fewest adapters first; the recommended one in bold."""
    measure = analysis.measure
    table = Table(["To serve", "Adapters", "Size of them", f"Test {plain_label(measure)}"])
    ways = sorted([made.served, *(alternative.option for alternative in made.alternatives)], key=_number_of_adapters)
    for option in ways:
        if option == made.served and not made.only_base:
            table.bold = {(len(table.rows), j) for j in range(len(table.columns))}
        name = option_name(analysis.summary, option)
        table.rows.append(
            [
                name[0].upper() + name[1:],
                f"{option.num_adapters:,}",
                megabytes_text(option.num_adapters * adapter_bytes(analysis.summary, option)),
                level_interval_text(analysis.bootstrap.level(option.setting), measure),
            ]
        )
    return table


def _number_of_adapters(option: Option) -> int:
    return option.num_adapters


def about_cost(summary: Summary, made: Recommendation) -> str:
    """What an adapter is, and the base that is served with any number of them."""
    adapted = next(option for option in (made.served, made.own, made.single) if option and option.num_adapters)
    row = trial_of(summary, adapted)
    config = config_of(row)
    name, size = markdown_text(model_name(config), 120), megabytes_text(_bytes(row["base_bytes"]))
    weights = ", ".join(filter(lambda text: text not in ("–", ""), [_text(row["dtype"]), size]))
    base = f"the base{f', {name}' if name else ''}{f' ({weights})' if weights else ''}"
    return (
        f"*What it costs to serve.* Every way needs {base}, once; a server that switches adapters holds one base for "
        f"all of them. An adapter here: {adapter_text(row)}. Full models (`--merge`) are as large as the base, each. "
        "Bold: what is recommended."
    )


def adapter_bytes(summary: Summary, option: Option) -> float:
    """Size of one exported adapter; NaN where an older version did not write it."""
    return 0.0 if option.kind == "base" else _bytes(trial_of(summary, option)["adapter_bytes"])


def trial_of(summary: Summary, option: Option) -> dict[Any, Any]:
    """The row of `trials` of an option's first seed."""
    first = summary.settings[option.setting].trials[0]
    return next(row for row in summary.trials.to_dict("records") if (row["run"], row["trial_id"]) == first)


def config_of(row: dict[Any, Any]) -> dict[str, Any]:
    """The configuration of a row of `trials`; empty in results that lack it."""
    return json.loads(row["config_json"]) if isinstance(row["config_json"], str) else {}


def adapter_text(row: dict[Any, Any]) -> str:
    """`rank 8, lora, 0.59 MB each`."""
    size = megabytes_text(_bytes(row["adapter_bytes"]))
    parts = [f"rank {row['lora_rank']:.0f}" if pd.notna(row["lora_rank"]) else "", _text(row["lora_variant"])]
    return ", ".join(filter(None, [*parts, f"{size} each" if size != "–" else ""]))


def _text(value: Any) -> str:
    return markdown_text(value) if isinstance(value, str) else ""


def _bytes(value: Any) -> float:
    return float("nan") if pd.isna(value) else float(value)
