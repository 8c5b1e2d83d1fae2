"""The bytes that a computation holds, counted while it runs on tensors that have sizes and no numbers.

Nothing is computed, and no memory is used: torch's meta tensors follow shapes and types through any model's own code.

Shapes: B rows, T queries, S keys, H heads, G heads of keys and values, E width of a head's keys, V of its values.
"""

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

META = torch.device("meta")
BY_VALUE = (torch.ops.aten.arange, torch.ops.aten.full, torch.ops.aten.scalar_tensor)
"""Functions whose results have the type of their arguments, if none is given."""


class LiveBytes(TorchDispatchMode):
    """Within, floating-point tensors are made on the meta device, and the bytes of all that are alive are counted.

    Tokens, positions and masks that come from no such tensor are real and on the CPU, so that a model may read them. A
    number that it reads from a meta tensor is 1, or False.

    Args:
        given: Tensors that are alive before, and are not counted.
    """

    def __init__(self, given: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in given}
        self._attention = FusedAttention()

    def __enter__(self) -> "LiveBytes":
        self._attention.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._attention.__exit__(*error)

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak = self.now

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """See `torch.utils._python_dispatch.TorchDispatchMode`."""
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(tensor.is_meta for tensor in tensors):
            if func is torch.ops.aten._local_scalar_dense.default:
                return False if args[0].dtype == torch.bool else torch.ones((), dtype=args[0].dtype).item()
            if "device" in kwargs:
                kwargs["device"] = META
            if not all(tensor.is_meta for tensor in tensors):
                args = tree_map_only(Tensor, _to_meta, args)
                kwargs = {name: tree_map_only(Tensor, _to_meta, value) for name, value in kwargs.items()}
        elif any(argument.name == "device" for argument in func._schema.arguments):
            kwargs["device"] = META if not tensors and _is_float(func, args, kwargs) else torch.device("cpu")
        result = func(*args, **kwargs)
        for tensor in (result,) if isinstance(result, Tensor) else tree_iter(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes()).atexit = False

    def _forget(self, address: int, size: int) -> None:
        self._seen.discard(address)
        self.now -= size


def _to_meta(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta else tensor.to(META)


def _is_float(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a function that is given no tensor makes floating-point numbers, as `torch.zeros` does."""
    dtype = kwargs.get("dtype")
    if dtype is None and func.overloadpacket in BY_VALUE:
        return any(isinstance(argument, float) for argument in args)
    return (dtype or torch.get_default_dtype()).is_floating_point


class FusedAttention(TorchFunctionMode):
    """Within, attention holds what a GPU's fused kernel does; on meta tensors torch would take the slow one."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """See `torch.overrides.TorchFunctionMode`."""
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            return _Attention.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    """The sizes of a fused kernel: it saves its inputs, its output and a logarithm for each query."""

    @staticmethod
    def forward(ctx: Any, query_BHTE: Tensor, key_BGSE: Tensor, value_BGSV: Tensor) -> Tensor:
        """Attention's output, of shape (B, H, T, V), in memory as the queries are."""
        output_BHTV = torch.empty_like(query_BHTE)
        if value_BGSV.shape[-1] != query_BHTE.shape[-1]:
            rows, heads, length, _ = query_BHTE.shape
            output_BHTV = query_BHTE.new_empty(rows, length, heads, value_BGSV.shape[-1]).transpose(1, 2)
        log_BHT = query_BHTE.new_empty(query_BHTE.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query_BHTE, key_BGSE, value_BGSV, output_BHTV, log_BHT)
        return output_BHTV

    @staticmethod
    def backward(ctx: Any, grad_BHTV: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]  # noqa: ARG004
        """Gradients of queries, keys and values."""
        query_BHTE, key_BGSE, value_BGSV, *_ = ctx.saved_tensors
        return tuple(torch.empty_like(tensor) for tensor in (query_BHTE, key_BGSE, value_BGSV))
