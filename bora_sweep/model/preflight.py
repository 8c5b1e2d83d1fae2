"""Checks of a base model and its adapters before anything is fitted: one message now instead of one per trial."""

from dataclasses import replace
from pathlib import Path

from bora_sweep.config import Config
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.errors import InputError
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.base import empty_base, load_base, refuse_mismatch
from bora_sweep.model.layout import make_layout
from bora_sweep.model.lengths import length_limits
from bora_sweep.model.peft_check import sites_by_weight
from bora_sweep.model.peft_io import read_adapters
from bora_sweep.model.prior import group_names
from bora_sweep.model.quantization import refuse_missing_package
from bora_sweep.model.sites import notes_on_sites

SMALL_PARAMETERS = 500_000_000
"""Parameters up to which `try_model` loads a model. A larger one is left to the trials, which have the memory."""


def check_model(config: Config, corpus: TokenizedCorpus) -> tuple[list[str], list[str]]:
    """Refuse a model, target modules or adapters that no trial could use. The model's weights are not loaded.

    Returns:
        The groups of parameters with a tau of their own, whose scales a sweep searches, and notes on the target
        modules.

    Raises:
        InputError: The model does not fit the corpus, the adapters do not fit the model, or a group is unknown.
    """
    refuse_missing_package(config.model)
    base = empty_base(config.model, config.data)
    refuse_mismatch(base, corpus.largest_token, corpus.longest)
    notes = notes_on_sites(base, config.lora)
    layout = make_layout(base, config.lora)
    by_weight = sites_by_weight(base, layout, config.lora)  # refuses adapters that an export could not hold
    if by_weight and config.model.quantization is not None:
        raise InputError(
            f"model.quantization={config.model.quantization}: PEFT adapts {', '.join(sorted(by_weight)[:3])} of a "
            f"{base.config.model_type} model by their weights alone, which would be packed, so that an export could "
            "not be used; leave them out of lora.target_modules, or drop model.quantization"
        )
    if config.init_from is not None:
        read_adapters(Path(config.init_from), layout, config.lora, corpus.tasks, config.model.name)
    names = group_names(config.prior, layout, corpus.tasks)
    return [] if config.prior.groups == "task" else names, notes


def try_model(config: Config, corpus: TokenizedCorpus) -> None:
    """Load a small model and attach adapters, to refuse one that every trial would refuse.

    Raises:
        InputError: The model cannot be used.
    """
    empty = empty_base(config.model, config.data)
    if sum(weight.numel() for weight in empty.parameters()) > SMALL_PARAMETERS:
        return
    base = load_base(replace(config.model, device_map=None), config.data)  # the driver may have no GPU
    AdaptedModel(base, make_layout(base, config.lora)).remove_hooks()
    length_limits(base, corpus.shortest, corpus.longest)
