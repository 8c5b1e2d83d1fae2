"""The sites of adapters: the modules that `lora.target_modules` names and that can be adapted."""

import re
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bora_sweep.config import LoraConfig
from bora_sweep.errors import InputError
from bora_sweep.model.linear_modules import last_name, linear_modules, make_site, name_pattern, unfit_modules
from bora_sweep.model.lora import Site

ALL_LINEAR = "all-linear"
"""The value of `lora.target_modules` for every linear layer but the head, routed experts and their routers."""
ROUTING = re.compile(r"experts|gate|.*router|.*expert_gate")
"""Names of routed experts and of the modules that choose them."""


def find_sites(base: nn.Module, config: LoraConfig) -> tuple[Site, ...]:
    """The modules of `base` that `config.target_modules` names, without those in which an adapter could not act.

    The result does not depend on the weights, which may be absent.

    Raises:
        InputError: No module has a given name; a named module is neither Linear nor Conv1D; or none of the modules
            with a name can be adapted.
    """
    named, unfit, targets = _named_modules(base, config), unfit_modules(base), config.target_modules
    for target in targets if isinstance(targets, list) else [targets or ALL_LINEAR]:
        matched = [name for name in named if not isinstance(targets, list) or _matches(name, [target])]
        if all(name in unfit for name in matched):
            why = f"{matched[0]} {unfit[matched[0]]}; leave it out" if matched else "the model has no linear layers"
            raise InputError(f"lora.target_modules={target}: {why}")
    return tuple(make_site(name, module) for name, module in named.items() if name not in unfit)


def notes_on_sites(base: nn.Module, config: LoraConfig) -> list[str]:
    """What may surprise a user about where adapters are, as notes to show before a run; errors as in `find_sites`."""
    named, unfit, notes = _named_modules(base, config), unfit_modules(base), []
    if config.target_modules is None and _peft_default(base) is None:
        names = ", ".join(dict.fromkeys(last_name(name) for name in named))
        notes.append(
            f"lora.target_modules=null: PEFT has no default for a {_model_type(base)} model; adapters are at all "
            f"linear layers, {names}"
        )
    for reason in dict.fromkeys(unfit[name] for name in named if name in unfit):
        names = ", ".join(dict.fromkeys(name_pattern(name) for name in named if unfit.get(name) == reason))
        notes.append(f"no adapters at {names}: each {reason}")
    experts = dict.fromkeys(name_pattern(name) for name, module in base.named_modules() if _is_experts(name, module))
    if experts:
        notes.append(f"no adapters at the routed experts, {', '.join(experts)}: their weights are in no linear layer")
    routed = dict.fromkeys(
        name_pattern(name) for name in linear_modules(base) if _is_routing(name) and name not in named
    )
    if routed and _targets_of(base, config) == ALL_LINEAR:
        notes.append(
            f"no adapters at routed experts and their routers, {', '.join(routed)}: {ALL_LINEAR} leaves them out; name "
            "them in lora.target_modules to adapt them"
        )
    return notes


def _named_modules(base: nn.Module, config: LoraConfig) -> dict[str, nn.Module]:
    """The modules that `config` names, including those that cannot be adapted."""
    targets = _targets_of(base, config)
    if targets == ALL_LINEAR:
        head = base.get_output_embeddings() if isinstance(base, PreTrainedModel) else None
        linear = linear_modules(base).items()
        return {name: module for name, module in linear if module is not head and not _is_routing(name)}
    named = {name: module for name, module in base.named_modules() if _matches(name, targets)}
    if isinstance(targets, str):
        missing = [] if named else [targets]
    else:
        missing = [target for target in targets if not any(_matches(name, [target]) for name in named)]
    if missing or not named:
        names = sorted({last_name(name) for name in linear_modules(base) if name not in unfit_modules(base)})
        raise InputError(f"lora.target_modules={missing}: no such module in the model; it has {', '.join(names)}")
    for name, module in named.items():
        if not isinstance(module, nn.Linear | Conv1D):
            kind = type(module).__name__
            raise InputError(f"lora.target_modules: {name} is a {kind}; Linear and Conv1D can be adapted")
    return named


def _targets_of(base: nn.Module, config: LoraConfig) -> list[str] | str:
    """`config.target_modules`; with null PEFT's default, if there is one."""
    return config.target_modules or _peft_default(base) or ALL_LINEAR


def _peft_default(base: nn.Module) -> list[str] | str | None:
    """PEFT's default targets in this architecture, without those that cannot be adapted; None if none is left."""
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    default = DEFAULTS.get(_model_type(base), [])
    fit = [name for name in linear_modules(base) if name not in unfit_modules(base)]
    if isinstance(default, str):
        return default if any(_matches(name, default) for name in fit) else None
    return [target for target in default if any(_matches(name, [target]) for name in fit)] or None


def _is_routing(name: str) -> bool:
    """Whether a module is a routed expert's, or chooses between experts."""
    return any(map(ROUTING.fullmatch, name.split(".")))


def _matches(name: str, targets: Sequence[str] | str) -> bool:
    """Whether the path ends with one of the targets, or matches a regular expression."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _model_type(base: nn.Module) -> str:
    return str(getattr(getattr(base, "config", None), "model_type", type(base).__name__))


def _is_experts(name: str, module: nn.Module) -> bool:
    """Whether a module holds the weights of routed experts, stacked in one tensor."""
    is_named_so = "expert" in f"{name} {type(module).__name__}".lower()
    return is_named_so and any(weight.dim() == 3 for weight in module.parameters(recurse=False))
