"""What PEFT makes of adapters that are written for it, tried on a base without weights: it would not say.

PEFT goes by names. In models with routed experts it takes some dense layers' for the experts' and drops their adapters
with a mere warning; some modules it refuses. Which ones is a matter of its version, so they are found by trying.

Shapes: P parameters of one adapter.
"""

import copy
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from bora_sweep.config import LoraConfig
from bora_sweep.errors import InputError, one_line
from bora_sweep.model.layout import Layout, Part, layout_of_sites
from bora_sweep.model.lora import Site
from bora_sweep.model.peft_io import PEFT_NAMES, named_parts, peft_config, peft_key

TRIED = "tried"  # the adapter's name in PEFT


def sites_by_weight(base: PreTrainedModel, layout: Layout, config: LoraConfig) -> frozenset[str]:
    """The sites that PEFT adapts only if it is told of their weights (`target_parameters`): in most models none.

    Args:
        base: Of which the modules alone are looked at.
        layout: Where it has adapters.
        config: Their rank, alpha and variant.

    Returns:
        Names of sites, for `write_adapter`.

    Raises:
        InputError: PEFT would not load this layout's adapters as they are, either way; or DoRA on a quantised base.
    """
    if config.variant == "dora" and getattr(base.config, "quantization_config", None) is not None:
        raise InputError(
            "lora.variant=dora: the base is quantised; DoRA needs the norms of plain weights: set lora.variant=lora "
            "or model.name to a base that is not quantised"
        )
    if config.variant == "mora" or _trouble(base, layout, config) is None:
        return frozenset()
    alike: dict[str, list[Site]] = {}  # by their last name
    for site in layout.sites:
        alike.setdefault(site.name.rpartition(".")[2], []).append(site)
    alone = {last: layout_of_sites(sites, config) for last, sites in alike.items()}
    awkward = [last for last, part in alone.items() if _trouble(base, part, config) is not None]
    by_weight = frozenset(site.name for last in awkward for site in alike[last])
    reason = _trouble(base, layout, config, by_weight)
    if reason is None:
        return by_weight
    refused = [last for last in awkward if _trouble(base, alone[last], config, by_weight) is not None] or list(alike)
    others = [last for last in alike if last not in refused]
    plain = replace(config, variant="lora")
    mends = [f"set lora.target_modules=[{','.join(others)}]"] if others else []
    mends += (
        ["lora.variant=lora"] if _trouble(base, layout_of_sites(layout.sites, plain), plain, by_weight) is None else []
    )
    raise InputError(
        f"lora.target_modules: an export could not be used, as PEFT loads no {config.variant} adapter of "
        f"{', '.join(refused)} in a {base.config.model_type} model ({reason}); {' or '.join(mends) or 'name others'}"
    )


def refuse_unlike(base: PreTrainedModel, folder: Path, layout: Layout, theta_P: Tensor) -> None:
    """Refuse a PEFT folder unless PEFT loads all of theta_P from it, each part to its own module, and nothing else.

    Raises:
        InputError: It does not; which module, and what of it.
    """
    with _quiet():
        model = PeftModel.from_pretrained(
            _without_memory(base, theta_P.dtype), str(folder), adapter_name=TRIED, low_cpu_mem_usage=True
        )
    loaded, expected = _adapter_of(model), {_loaded_key(p): t for p, t in named_parts(layout, theta_P)}
    for key, part in expected.items():
        if key not in loaded or loaded[key].is_meta or not torch.equal(loaded[key], part):
            raise InputError(f"{folder}: PEFT would load {key} otherwise than it was fitted; nothing is exported")
    if more := loaded.keys() - expected.keys():
        raise InputError(f"{folder}: PEFT would make up {min(more)}, which was not fitted; nothing is exported")


def _trouble(base: PreTrainedModel, layout: Layout, config: LoraConfig, by_weight: Collection[str] = ()) -> str | None:
    """Why PEFT would not load adapters of `layout` as they are; None: it would."""
    nothing = torch.zeros(())
    zeros = {peft_key(part): nothing.expand(part.shape) for part in layout.parts}
    expected = {_loaded_key(part): part.shape for part in layout.parts}
    try:
        with _quiet():
            described = peft_config(layout, config, None, by_weight)
            model = get_peft_model(_without_memory(base), described, adapter_name=TRIED, low_cpu_mem_usage=True)
            set_peft_model_state_dict(model, zeros, adapter_name=TRIED, low_cpu_mem_usage=True)
    except (ValueError, TypeError, RuntimeError, KeyError, NotImplementedError, AttributeError) as error:
        return one_line(error, limit=200)
    # What PEFT made and did not load stays without memory.
    loaded = {key: tuple(part.shape) for key, part in _adapter_of(model).items() if not part.is_meta}
    different = sorted(loaded.items() ^ expected.items())
    return f"it drops or adds {different[0][0]}, and {len(different) - 1} more" if different else None


def _adapter_of(model: PeftModel) -> dict[str, Tensor]:
    return {key: part for key, part in model.state_dict().items() if f".{TRIED}." in key}


def _loaded_key(part: Part) -> str:
    """Its name in a model that PEFT has loaded it into."""
    return f"base_model.model.{part.site.name}.{PEFT_NAMES[part.kind].removesuffix('.weight')}.{TRIED}.weight"


def _without_memory(base: PreTrainedModel, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model of the same modules, each of its weights zeros that are kept as one number."""
    with torch.device("meta"):
        empty = type(base)(copy.deepcopy(base.config))
    zero = torch.zeros((), dtype=dtype)
    for module in empty.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(zero.expand(parameter.shape), requires_grad=False))
    return empty


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, neither PEFT nor transformers speaks of what is only tried."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
