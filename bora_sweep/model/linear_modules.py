"""The linear modules of a base model, and those in which an adapter could not act.

Whether an adapter can act is found by following the shapes of a batch through a copy of the model without weights.

Shapes: B rows, T tokens, I in, O out.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bora_sweep.model.lora import Site
from bora_sweep.model.quantization import is_packed

ROWS, TOKENS = 3, 7
"""Shape of the batch that is followed; 3, 7 and 21 cannot be mistaken for one another."""
PEFT_REFUSES = "is one that PEFT adapts in no such model"

_unfit: WeakKeyDictionary[nn.Module, dict[str, str]] = WeakKeyDictionary()


def linear_modules(base: nn.Module) -> dict[str, nn.Module]:
    """All Linear and Conv1D modules of `base`, by their paths."""
    return {name: module for name, module in base.named_modules() if isinstance(module, nn.Linear | Conv1D)}


def make_site(name: str, module: nn.Module) -> Site:
    """The site of an adapter at a Linear or Conv1D; a quantised layer is what it was before."""
    if isinstance(module, Conv1D):
        return Site(name, *module.weight.shape, transposed=True)
    assert isinstance(module, nn.Linear)
    was_transposed = issubclass(getattr(module, "source_cls", nn.Linear), Conv1D)  # bitsandbytes keeps it as (O, I)
    return Site(name, module.in_features, module.out_features, transposed=was_transposed)


def last_name(path: str) -> str:
    """The last part of a module's path."""
    return path.rpartition(".")[2]


def name_pattern(path: str) -> str:
    """A module's path with a star for each number, such as `model.layers.*.mlp`."""
    return ".".join("*" if piece.isdecimal() else piece for piece in path.split("."))


def unfit_modules(base: nn.Module) -> dict[str, str]:
    """The linear modules whose adapters could not act, or would mix the batch's rows, and why.

    Empty if the shapes of a batch cannot be followed; `bora_sweep.model.base_check` then finds such modules.

    Returns:
        The reason, by the module's path.
    """
    if base not in _unfit:
        calls_of = _trace_calls(base) if isinstance(base, PreTrainedModel) else {}
        reasons = {name: _reason(base.get_submodule(name), calls) for name, calls in calls_of.items()}
        refused = {name: PEFT_REFUSES for name in linear_modules(base) if _peft_refuses(base, name)}
        _unfit[base] = {name: reason for name, reason in reasons.items() if reason is not None} | refused
    return _unfit[base]


@dataclass(frozen=True)
class _Call:
    """The shapes of a module's input and output in one call, and a tensor added to the output.

    The added tensor has a gradient if the output was used.
    """

    input_shape: torch.Size | None
    output_shape: torch.Size | None
    added: Tensor | None

    @property
    def is_used(self) -> bool:
        return self.added is not None and self.added.grad is not None


def _reason(module: nn.Module, calls: Sequence[_Call]) -> str | None:
    """Why an adapter cannot act in these calls; None if it can."""
    if not calls:
        return "is never called, so that an adapter would change nothing"
    for call in calls:
        shape = call.input_shape
        if shape is None or call.output_shape != (*shape[:-1], make_site("", module).out_features):
            return f"is a {type(module).__name__}, whose output is not that of a linear layer"
        if shape[0] not in (ROWS, ROWS * TOKENS) or shape[:-1].numel() < ROWS * TOKENS:
            return "does not see a batch's rows one after another, each with its tokens"
    if not any(call.is_used for call in calls):
        return "has an output that the logits of a short text do not depend on, so that an adapter would change nothing"
    return None


def _peft_refuses(base: nn.Module, name: str) -> bool:
    """Whether PEFT loads no adapter here: fast kernels read the weight of a Mamba's out_proj without calling it."""
    from peft import LoraConfig as PeftConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba as check

    try:
        check(PeftConfig(), base, last_name(name))
    except ValueError:
        return True
    return False


def _trace_calls(base: PreTrainedModel) -> dict[str, list[_Call]]:
    """The calls of each linear module in one forward pass of a batch; empty if it cannot be traced.

    No numbers are computed: a copy of the model on the meta device runs. A second try is in bfloat16, the only type for
    which torch knows the shapes of experts' products.
    """
    for dtype in (None, torch.bfloat16):
        try:
            empty = without_weights(base, dtype)
            calls_of: dict[str, list[_Call]] = {name: [] for name in linear_modules(empty)}
            for name, calls in calls_of.items():
                empty.get_submodule(name).register_forward_hook(_recorder(calls))
            tokens_BT = torch.zeros(ROWS, TOKENS, dtype=torch.long, device="meta")
            with torch.enable_grad(), torch.device("meta"), _FixedValues():
                empty(input_ids=tokens_BT, use_cache=False).logits.sum().backward()
        except Exception:  # any model's code, which may read values that are not there
            continue
        return calls_of
    return {}


def _recorder(calls: list[_Call]):
    """A forward hook that appends to `calls`."""

    def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:  # noqa: ARG001, a hook's arguments
        if not isinstance(output, Tensor):
            calls.append(_Call(None, None, None))
            return output
        added = torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
        calls.append(_Call(inputs[0].shape, output.shape, added))
        return output + added

    return record


def without_weights(base: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A copy of the model on the meta device, its floating-point weights in `dtype` if that is given."""

    def empty(tensor: Tensor) -> Tensor:
        kept = tensor.dtype if dtype is None or not tensor.is_floating_point() else dtype
        bare = torch.empty(tensor.shape, device="meta", dtype=kept)
        return nn.Parameter(bare, requires_grad=False) if isinstance(tensor, nn.Parameter) else bare

    plain: dict[int, Any] = {  # the kernels of packed weights do not follow shapes alone
        id(module): nn.Linear(
            module.in_features, module.out_features, module.bias is not None, "meta", dtype or base.dtype
        )
        for module in base.modules()
        if is_packed(module)
    }
    weights = [*base.parameters(), *base.buffers()]
    return copy.deepcopy(base, plain | {id(tensor): empty(tensor) for tensor in weights}).eval()


class _FixedValues(TorchDispatchMode):
    """Within, a model that reads a number from a meta tensor gets 1, or False."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """See `torch.utils._python_dispatch.TorchDispatchMode`."""
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return False if args[0].dtype == torch.bool else torch.ones((), dtype=args[0].dtype).item()
        return func(*args, **(kwargs or {}))
