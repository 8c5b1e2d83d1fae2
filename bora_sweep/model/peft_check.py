"""Checks that PEFT loads adapters as they were fitted, by loading them onto a base without weights.

PEFT finds modules by name. In models with routed experts it mistakes some dense layers for experts, and drops their
adapters with only a warning; other modules it refuses. Which ones depends on its version, so each export is tried.

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
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from bora_sweep.config import LoraConfig
from bora_sweep.errors import InputError, one_line
from bora_sweep.model.layout import Layout, Part, layout_of_sites
from bora_sweep.model.linear_modules import last_name
from bora_sweep.model.lora import Site
from bora_sweep.model.peft_config import ADAPTER_CONFIG, IN_PEFT, PEFT_NAMES, peft_config, peft_key
from bora_sweep.model.peft_io import WEIGHTS, named_parts
from bora_sweep.model.quantization import is_quantised

ADAPTER_NAME = "checked"  # in PEFT


def sites_by_weight(base: PreTrainedModel, layout: Layout, config: LoraConfig) -> frozenset[str]:
    """The sites that PEFT adapts only if it is given their weights (`target_parameters`); in most models none.

    Args:
        base: The base model, whose weights may be absent.
        layout: Where it has adapters.
        config: Their rank, alpha and variant.

    Returns:
        Names of sites, for `write_adapter`.

    Raises:
        InputError: PEFT does not load this layout's adapters unchanged, either way; or DoRA on a quantised base.
    """
    if config.variant == "dora" and is_quantised(base):
        raise InputError(
            "lora.variant=dora: the base is quantised; DoRA needs the norms of plain weights: set lora.variant=lora "
            "or model.name to a base that is not quantised"
        )
    if config.variant not in IN_PEFT or _load_error(base, layout, config) is None:
        return frozenset()
    sites_of: dict[str, list[Site]] = {}  # by the last part of their names
    for site in layout.sites:
        sites_of.setdefault(last_name(site.name), []).append(site)
    layout_of = {name: layout_of_sites(sites, config) for name, sites in sites_of.items()}
    failing = [name for name, part in layout_of.items() if _load_error(base, part, config) is not None]
    by_weight = frozenset(site.name for name in failing for site in sites_of[name])
    error = _load_error(base, layout, config, by_weight)
    if error is None:
        return by_weight
    refused = [name for name in failing if _load_error(base, layout_of[name], config, by_weight) is not None]
    refused = refused or list(sites_of)
    others = [name for name in sites_of if name not in refused]
    mends = [f"set lora.target_modules=[{','.join(others)}]"] if others else []
    plain = replace(config, variant="lora")
    if _load_error(base, layout_of_sites(layout.sites, plain), plain, by_weight) is None:
        mends.append("lora.variant=lora")
    raise InputError(
        f"lora.target_modules: an export could not be used, as PEFT loads no {config.variant} adapter of "
        f"{', '.join(refused)} in a {base.config.model_type} model ({error}); {' or '.join(mends) or 'name others'}"
    )


def check_peft_folder(base: PreTrainedModel, folder: Path, layout: Layout, theta_P: Tensor) -> None:
    """Check that PEFT loads exactly theta_P from a folder, each part into its own module.

    Args:
        base: The base model, whose weights may be absent.
        folder: What `write_adapter` wrote.
        layout: The adapter's layout.
        theta_P: The adapter.

    Raises:
        InputError: PEFT loads something else; the message names a module.
    """
    with _no_warnings():
        model = PeftModel.from_pretrained(
            _with_zero_weights(base, theta_P.dtype), str(folder), adapter_name=ADAPTER_NAME, low_cpu_mem_usage=True
        )
    loaded, expected = _adapter_of(model), {_loaded_key(p): t for p, t in named_parts(layout, theta_P)}
    for key, part in expected.items():
        if key not in loaded or loaded[key].is_meta or not torch.equal(loaded[key], part):
            raise InputError(f"{folder}: PEFT would load {key} otherwise than it was fitted; nothing is exported")
    if more := loaded.keys() - expected.keys():
        raise InputError(f"{folder}: PEFT would make up {min(more)}, which was not fitted; nothing is exported")


def check_like(checked: Path, folder: Path, layout: Layout, theta_P: Tensor) -> None:
    """Check that a folder differs by its values alone from one that `check_peft_folder` has passed, and holds theta_P.

    Args:
        checked: The folder that PEFT has loaded.
        folder: What `write_adapter` wrote.
        layout: The layout of both.
        theta_P: The adapter.

    Raises:
        InputError: Its description or its tensors differ.
    """
    if (folder / ADAPTER_CONFIG).read_bytes() != (checked / ADAPTER_CONFIG).read_bytes():
        raise InputError(f"{folder}: {ADAPTER_CONFIG} is not that of {checked}, which PEFT loads; nothing is exported")
    written, expected = load_file(folder / WEIGHTS), {peft_key(p): t for p, t in named_parts(layout, theta_P)}
    for key in sorted(expected.keys() | written.keys()):
        if key not in written or key not in expected or not torch.equal(written[key], expected[key]):
            raise InputError(f"{folder}: PEFT would load {key} otherwise than it was fitted; nothing is exported")


def _load_error(
    base: PreTrainedModel, layout: Layout, config: LoraConfig, by_weight: Collection[str] = ()
) -> str | None:
    """Why PEFT does not load adapters of `layout` unchanged; None if it does."""
    zero = torch.zeros(())
    zeros = {peft_key(part): zero.expand(part.shape) for part in layout.parts}
    expected = {_loaded_key(part): part.shape for part in layout.parts}
    try:
        with _no_warnings():
            description, empty = peft_config(layout, config, None, by_weight), _with_zero_weights(base)
            model = get_peft_model(empty, description, adapter_name=ADAPTER_NAME, low_cpu_mem_usage=True)
            set_peft_model_state_dict(model, zeros, adapter_name=ADAPTER_NAME, low_cpu_mem_usage=True)
    except (ValueError, TypeError, RuntimeError, KeyError, NotImplementedError, AttributeError) as error:
        return one_line(error, limit=200)
    # A part that PEFT created but did not load is still on the meta device.
    loaded = {key: tuple(part.shape) for key, part in _adapter_of(model).items() if not part.is_meta}
    different = sorted(loaded.items() ^ expected.items())
    return f"it drops or adds {different[0][0]}, and {len(different) - 1} more" if different else None


def _adapter_of(model: PeftModel) -> dict[str, Tensor]:
    return {key: part for key, part in model.state_dict().items() if f".{ADAPTER_NAME}." in key}


def _loaded_key(part: Part) -> str:
    """The name of a part in a model that PEFT has loaded it into."""
    return f"base_model.model.{part.site.name}.{PEFT_NAMES[part.kind].removesuffix('.weight')}.{ADAPTER_NAME}.weight"


def _with_zero_weights(base: PreTrainedModel, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model of the same modules, whose weights are zeros that need the memory of one number each."""
    with torch.device("meta"):
        empty = type(base)(copy.deepcopy(base.config))
    zero = torch.zeros((), dtype=dtype)
    for module in empty.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(zero.expand(parameter.shape), requires_grad=False))
    return empty


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Within, PEFT and transformers print no warnings about a model that is only tried."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
