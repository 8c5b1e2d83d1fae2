"""PEFT's description of an adapter, `adapter_config.json`: what is written into it, and what is accepted in others."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bora_sweep.config import LoraConfig
from bora_sweep.errors import InputError
from bora_sweep.model.layout import Layout, Part

if TYPE_CHECKING:
    from peft import LoraConfig as PeftConfig

ADAPTER_CONFIG = "adapter_config.json"
IN_PEFT = ("lora", "rslora", "lora_plus", "dora")
"""The values of `lora.variant` that PEFT has too."""
PEFT_NAMES = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}

# Keys that are read here, or that do not change what trained weights mean. Any other key may change what the adapter
# does if it differs from PEFT's default.
KNOWN_KEYS = {
    "r", "lora_alpha", "use_rslora", "use_dora", "target_modules", "exclude_modules", "layers_to_transform",
    "layers_pattern", "lora_dropout", "fan_in_fan_out", "inference_mode", "task_type", "base_model_name_or_path",
    "revision", "auto_mapping", "peft_version", "ensure_weight_tying",
}  # fmt: skip
# Values of init_lora_weights that leave the base's weights as they are; the others subtract from W.
HARMLESS_INITS = (True, False, "gaussian", "orthogonal", "eva")


def peft_config(layout: Layout, config: LoraConfig, base: str | None, by_weight: Collection[str]) -> "PeftConfig":
    """PEFT's configuration of the adapters of `layout`; arguments as in `bora_sweep.model.peft_io.write_adapter`."""
    from peft import LoraConfig as PeftConfig

    return PeftConfig(
        r=config.rank,
        lora_alpha=config.resolved_alpha,  # type: ignore[arg-type]  # PEFT takes any number
        use_rslora=config.variant == "rslora",
        use_dora=config.variant == "dora",
        target_modules=[site.name for site in layout.sites if site.name not in by_weight],
        target_parameters=[f"{site.name}.weight" for site in layout.sites if site.name in by_weight] or None,
        fan_in_fan_out=any(site.transposed for site in layout.sites),
        base_model_name_or_path=base,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )


def peft_key(part: Part) -> str:
    """The name of a part in PEFT's weight files."""
    return f"base_model.model.{part.site.name}.{PEFT_NAMES[part.kind]}"


def refuse_other_base(folder: Path, adapter_base: object, base: str | None) -> None:
    """Refuse an adapter whose base has another name, since its numbers do not show which base it was trained on.

    Only the last part of a name or path is compared, so that the base may lie in another place.

    Args:
        folder: The adapter's folder, for the message.
        adapter_base: `base_model_name_or_path` of the adapter; not compared unless it is text.
        base: What `from_pretrained` loads the fit's base by; None: not compared.

    Raises:
        InputError: The names differ.
    """
    if isinstance(adapter_base, str) and base is not None and _model_name(adapter_base) != _model_name(base):
        raise InputError(
            f"init_from={folder}: is an adapter of {adapter_base}, and the fit's base is model.name={base}; set "
            f"model.name to the adapter's; or, if both are the same model, base_model_name_or_path in its "
            f"{ADAPTER_CONFIG} to the fit's"
        )


def _model_name(base: str) -> str:
    """The last part of a hub's name, of a folder, or of a snapshot in the hub's cache."""
    parts = [part for part in base.replace("\\", "/").casefold().split("/") if part not in ("", ".")]
    cached = [part for part in parts if part.startswith("models--")]
    return cached[-1].rpartition("--")[2] if cached else parts[-1] if parts else ""


def refuse_other_kind(folder: Path, description: dict[str, Any], layout: Layout, config: LoraConfig) -> None:
    """Refuse an adapter whose weights would mean something else in this fit.

    Args:
        folder: The adapter's folder, for the message.
        description: Its `adapter_config.json`.
        layout: Where the fit has adapters.
        config: Their rank, alpha and variant.

    Raises:
        InputError: A key has a value that is not supported; or rank, alpha or variant differ from the fit's.
    """
    from peft import LoraConfig as PeftConfig

    default = {**PeftConfig().to_dict(), "peft_type": "LORA"}
    # PEFT adds B A as it is to a target parameter, which is wrong for a weight that is stored transposed.
    known = KNOWN_KEYS | (set() if any(site.transposed for site in layout.sites) else {"target_parameters"})
    for key, value in description.items():
        if key in known:
            continue
        if value not in HARMLESS_INITS if key == "init_lora_weights" else value and value != default.get(key):
            raise InputError(
                f"init_from={folder}: {ADAPTER_CONFIG} has {key}={value!r}; a fit begins with plain LoRA, rsLoRA or "
                "DoRA only"
            )
    variants = [name for name in ("rslora", "dora") if description.get(f"use_{name}")]
    there = {
        "rank": description.get("r"),
        "alpha": description.get("lora_alpha"),
        "variant": "+".join(variants) or "lora",
    }
    variant = "lora" if config.variant == "lora_plus" else config.variant  # LoRA+ only has another learning rate
    here = {"rank": config.rank, "alpha": config.resolved_alpha, "variant": variant}
    if different := [name for name in here if here[name] != there[name]]:
        has, needs = (", ".join(f"lora.{name}={kind[name]}" for name in different) for kind in (there, here))
        raise InputError(f"init_from={folder}: the adapter has {has}, the fit {needs}; give the fit the adapter's")
