"""Where adapters act: the modules that `lora.target_modules` names, and those of them that can be adapted.

Shapes: B rows, T tokens, I in, O out.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bora_sweep.config import LoraConfig
from bora_sweep.errors import InputError
from bora_sweep.model.lora import Site

ROWS, TOKENS = 3, 7
"""Of the batch whose shapes are followed through the model; each tells itself from the other and from their product."""
ROUTING = re.compile(r"experts|gate|.*router|.*expert_gate")
"""Names of routed experts, and of what chooses them."""

PEFT_REFUSES = "is one that PEFT adapts in no such model"

_unfit: WeakKeyDictionary[nn.Module, dict[str, str]] = WeakKeyDictionary()


@dataclass(frozen=True)
class _Call:
    """What went into a module and came out; the output bears a mark, whose gradient tells whether it was used."""

    inputs: torch.Size | None
    output: torch.Size | None
    mark: Tensor | None

    @property
    def is_used(self) -> bool:
        return self.mark is not None and self.mark.grad is not None


def find_sites(base: nn.Module, config: LoraConfig) -> tuple[Site, ...]:
    """The modules of `base` that `config.target_modules` names, without those whose adapters could not act.

    The weights need not be there, and decide nothing.

    Raises:
        InputError: A name that no module has, a module that is neither Linear nor Conv1D, or a name none of whose
            modules can be adapted.
    """
    chosen, unfit, asked = _chosen(base, config), _unfit_modules(base), config.target_modules
    for target in asked if isinstance(asked, list) else [asked or "all-linear"]:
        matched = [name for name in chosen if not isinstance(asked, list) or _matches(name, [target])]
        if all(name in unfit for name in matched):
            why = f"{matched[0]} {unfit[matched[0]]}; leave it out" if matched else "the model has no linear layers"
            raise InputError(f"lora.target_modules={target}: {why}")
    return tuple(_site(name, module) for name, module in chosen.items() if name not in unfit)


def about_sites(base: nn.Module, config: LoraConfig) -> list[str]:
    """What a user may not expect of where adapters act, for notes at the start; errors as in `find_sites`."""
    chosen, unfit, notes = _chosen(base, config), _unfit_modules(base), []
    if config.target_modules is None and _peft_default(base) is None:
        names = ", ".join(dict.fromkeys(own_name(name) for name in chosen))
        notes.append(
            f"lora.target_modules is not set and PEFT has no default for a {_kind(base)} model: adapters are at all "
            f"linear layers of the blocks, {names}"
        )
    for reason in dict.fromkeys(unfit[name] for name in chosen if name in unfit):
        names = ", ".join(dict.fromkeys(pattern(name) for name in chosen if unfit.get(name) == reason))
        notes.append(f"no adapters at {names}: each {reason}")
    experts = ", ".join(dict.fromkeys(pattern(name) for name, m in base.named_modules() if _holds_experts(name, m)))
    if experts:
        notes.append(f"no adapters at the routed experts, {experts}: their weights are in no linear layer")
    return notes


def _chosen(base: nn.Module, config: LoraConfig) -> dict[str, nn.Module]:
    """What is named, whether it can be adapted or not, but for a default: that names what can."""
    targets = config.target_modules if config.target_modules is not None else _peft_default(base)
    if targets is None:
        return _of_blocks(base)
    if targets == "all-linear":
        return {name: module for name, module in _linear(base).items() if module is not _head(base)}
    chosen = {name: module for name, module in base.named_modules() if _matches(name, targets)}
    wanted = [targets] if isinstance(targets, str) else targets
    missing = [t for t in wanted if not (chosen if isinstance(targets, str) else any(_matches(n, [t]) for n in chosen))]
    if missing or not chosen:
        names = sorted({own_name(name) for name in _linear(base) if name not in _unfit_modules(base)})
        raise InputError(f"lora.target_modules={missing}: no such module in the model; it has {', '.join(names)}")
    for name, module in chosen.items():
        if not isinstance(module, nn.Linear | Conv1D):
            kind = type(module).__name__
            raise InputError(f"lora.target_modules: {name} is a {kind}; Linear and Conv1D can be adapted")
    return chosen


def _peft_default(base: nn.Module) -> list[str] | str | None:
    """What PEFT adapts in this architecture by default, of what the model has; None where that is nothing."""
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    default = DEFAULTS.get(_kind(base), [])
    fit = [name for name in _linear(base) if name not in _unfit_modules(base)]
    if isinstance(default, str):
        return default if any(_matches(name, default) for name in fit) else None
    return [target for target in default if any(_matches(name, [target]) for name in fit)] or None


def _of_blocks(base: nn.Module) -> dict[str, nn.Module]:
    """The linear layers within the model's blocks, routed experts and what chooses them left out."""
    unfit, found = _unfit_modules(base), {}
    for name, module in _linear(base).items():
        path = name.split(".")
        if any(map(str.isdecimal, path)) and not any(map(ROUTING.fullmatch, path)) and name not in unfit:
            found[name] = module
    if not found:
        reasons = "; ".join(f"{name} {reason}" for name, reason in list(unfit.items())[:1])
        raise InputError(f"lora.target_modules: no linear layer of a {_kind(base)} model can be adapted ({reasons})")
    return found


def _matches(name: str, targets: Sequence[str] | str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _linear(base: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in base.named_modules() if isinstance(module, nn.Linear | Conv1D)}


def _head(base: nn.Module) -> nn.Module | None:
    return base.get_output_embeddings() if isinstance(base, PreTrainedModel) else None


def _kind(base: nn.Module) -> str:
    return str(getattr(getattr(base, "config", None), "model_type", type(base).__name__))


def own_name(name: str) -> str:
    """The last part of the path."""
    return name.rpartition(".")[2]


def pattern(name: str) -> str:
    """The path with a star for each number."""
    return ".".join("*" if piece.isdecimal() else piece for piece in name.split("."))


def _holds_experts(name: str, module: nn.Module) -> bool:
    is_named_so = "expert" in f"{name} {type(module).__name__}".lower()
    return is_named_so and any(weight.dim() == 3 for weight in module.parameters(recurse=False))


def _site(name: str, module: nn.Module) -> Site:
    if isinstance(module, Conv1D):
        return Site(name, *module.weight.shape, transposed=True)
    assert isinstance(module, nn.Linear)
    return Site(name, module.in_features, module.out_features, transposed=False)


def _unfit_modules(base: nn.Module) -> dict[str, str]:
    """Why an adapter of a linear module could not act, or could not be told apart by rows, by the module's name.

    Found by following the shapes of a batch through the model; none where they cannot be followed: `probe` then tries.
    """
    if base not in _unfit:
        calls_of = _followed(base) if isinstance(base, PreTrainedModel) else {}
        found = {name: _reason(base.get_submodule(name), calls) for name, calls in calls_of.items()}
        refused = {name: PEFT_REFUSES for name in _linear(base) if _peft_refuses(base, name)}
        _unfit[base] = {name: reason for name, reason in found.items() if reason is not None} | refused
    return _unfit[base]


def _reason(module: nn.Module, calls: Sequence[_Call]) -> str | None:
    """What an adapter's calls have against it."""
    if not calls:
        return "is never called, so that an adapter would change nothing"
    for call in calls:
        if call.inputs is None or call.output != (*call.inputs[:-1], _site("", module).out_features):
            return f"is a {type(module).__name__}, whose output is not that of a linear layer"
        if call.inputs[0] not in (ROWS, ROWS * TOKENS) or call.inputs[:-1].numel() < ROWS * TOKENS:
            return "does not see a batch's rows one after another, each with its tokens"
    if not any(call.is_used for call in calls):
        return "gives what the logits of a short text do not depend on, so that an adapter would change nothing"
    return None


def _peft_refuses(base: nn.Module, name: str) -> bool:
    """Whether PEFT loads no adapter of this module: a Mamba's out_proj, which fast kernels take the weight of."""
    from peft import LoraConfig as PeftConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba as check

    try:
        check(PeftConfig(), base, own_name(name))
    except ValueError:
        return True
    return False


def _followed(base: PreTrainedModel) -> dict[str, list[_Call]]:
    """The calls of each linear module in one pass of a batch; empty where none can be told.

    Nothing is computed: a twin of the model runs that has shapes and no numbers. In bfloat16 where need be, the one
    type for which torch knows the shapes of experts' products.
    """
    for dtype in (None, torch.bfloat16):
        try:
            twin = _twin(base, dtype)
            calls_of: dict[str, list[_Call]] = {name: [] for name in _linear(twin)}
            for name, calls in calls_of.items():
                twin.get_submodule(name).register_forward_hook(_noting(calls))
            tokens_BT = torch.zeros(ROWS, TOKENS, dtype=torch.long, device="meta")
            with torch.enable_grad(), torch.device("meta"), _WithoutNumbers():
                twin(input_ids=tokens_BT, use_cache=False).logits.sum().backward()
        except Exception:  # any model's code, which may look at numbers that are not there
            continue
        return calls_of
    return {}


def _noting(calls: list[_Call]):
    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:  # noqa: ARG001, a hook's arguments
        if not isinstance(output, Tensor):
            calls.append(_Call(None, None, None))
            return output
        mark = torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
        calls.append(_Call(inputs[0].shape, output.shape, mark))
        return output + mark

    return note


def _twin(base: PreTrainedModel, dtype: torch.dtype | None) -> PreTrainedModel:
    """A copy of the modules without their weights."""

    def empty(tensor: Tensor) -> Tensor:
        bare = torch.empty_like(tensor, device="meta", dtype=dtype if tensor.is_floating_point() else None)
        return nn.Parameter(bare, requires_grad=False) if isinstance(tensor, nn.Parameter) else bare

    weights = [*base.parameters(), *base.buffers()]
    return copy.deepcopy(base, {id(tensor): empty(tensor) for tensor in weights}).eval()


class _WithoutNumbers(TorchDispatchMode):
    """Within, a model that asks what number a tensor without numbers holds is told 1, or False."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """As torch has it."""
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return False if args[0].dtype == torch.bool else torch.ones((), dtype=args[0].dtype).item()
        return func(*args, **(kwargs or {}))
