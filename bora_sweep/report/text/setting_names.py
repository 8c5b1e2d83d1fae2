"""Names of settings and methods: the value of tau, and the rank and variant where they are not the usual ones."""

import json
import math

from bora_sweep.report.stats.gains import END_NAMES
from bora_sweep.report.stats.method_comparison import Method
from bora_sweep.report.stats.summary import Structure, Summary
from bora_sweep.report.text.formats import tau_text

_METHOD_NAMES = END_NAMES | {
    "zero_shot": "zero-shot",
    "bora": "BoRA",
    "three_levels": "BoRA in three levels",
    "per_group": "one model per group",
    "fine_tuned": "shared, then fine-tuned per task",
    "average": "merged: average",
    "ties": "merged: TIES",
    "dare": "merged: DARE",
    "pfedme": "pFedMe",
    "vi": "variational",
    "fedsa": "FedSA: A shared, B per task",
    "shared_wide": "one wide model for all",
    "task_prompt": "one model for all, with the task's name before each text",
}


def method_name(summary: Summary, method: Method) -> str:
    """`BoRA, τ = 100`, `merged: TIES`, `one model for all (τ = ∞), rank 32, best of 2, 8, 32`."""
    structure = summary.settings[method.setting].structure
    parts = [_METHOD_NAMES.get(method.kind, method.kind)]
    if method.kind in ("bora", "three_levels", "pfedme", "vi"):
        parts.append(f"τ = {taus_text(summary.settings[method.setting].tau, structure)}")
    usual = summary.structure
    ranks = sorted({rank for m in method.candidates if (rank := summary.settings[m].structure.lora_rank) is not None})
    parts += _unusual(structure, usual.lora_rank if len(ranks) < 2 else None, usual.lora_variant)
    if len(ranks) > 1:
        parts.append(f"best of {', '.join(map(str, ranks))}")
    return ", ".join(parts)


def setting_name(method: str, tau: float, structure: Structure, usual: Structure) -> str:
    """`100`, `∞, rank 32`, `ties`, `pfedme, τ = 100`.

    Args:
        method: The column `method` of `trials`.
        tau: NaN where there is no prior.
        structure: Of the setting.
        usual: The structure whose rank and variant are not named.
    """
    taus = taus_text(tau, structure)
    parts = [taus or "–"] if method == "map" else [method.replace("_", "-"), *([f"τ = {taus}"] if taus else [])]
    return ", ".join([*parts, *_unusual(structure, usual.lora_rank, usual.lora_variant)])


def taus_text(tau: float, structure: Structure) -> str:
    """The value of tau, with that of tau_2, or `10 (attention), 100 (mlp)`; empty where there is no prior."""
    if structure.tau_2 is not None:
        return f"{tau_text(tau)}, τ₂ = {tau_text(structure.tau_2)}"
    if structure.prior_groups is None:
        return "" if math.isnan(tau) else tau_text(tau)
    taus = json.loads(structure.prior_groups)
    return ", ".join(f"{tau_text(value)} ({group})" for group, value in taus.items())


def _unusual(structure: Structure, usual_rank: int | None, usual_variant: str | None) -> list[str]:
    """Rank and variant, where they are known and not the usual ones."""
    parts = [] if structure.lora_rank in (None, usual_rank) else [f"rank {structure.lora_rank}"]
    return parts if structure.lora_variant in (None, usual_variant) else [*parts, structure.lora_variant]
