"""The bytes that a computation holds, counted while it runs on tensors that have sizes and no numbers.

Nothing is computed, and no memory is used: torch's fake tensors follow shapes and types through any model's own code.
"""

import copy
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import PreTrainedModel

_FAKE = FakeTensorMode(allow_non_fake_inputs=True)
"""The one mode of all tensors without numbers; torch refuses to mix those of several."""


class LiveBytes(TorchDispatchMode):
    """Within, tensors of floating-point numbers have none, and the bytes of those that are alive are counted.

    Tokens, positions and masks that do not come from such tensors are real, so that a model may read them. A number
    that it reads from the others is 1, or False.

    Args:
        given: Tensors that are alive before, and are not counted.
    """

    def __init__(self, given: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in given}

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak = self.now

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """See `torch.utils._python_dispatch.TorchDispatchMode`."""
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return False if args[0].dtype == torch.bool else torch.ones((), dtype=args[0].dtype).item()
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not isinstance(result, FakeTensor) and result.is_floating_point():
            result = _FAKE.from_tensor(result)
        for tensor in tree_iter(result):
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


def without_numbers(base: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model for `LiveBytes`, whose weights have sizes and no numbers; its own may be absent."""

    def empty(tensor: Tensor) -> Tensor:
        with _FAKE:
            bare = torch.empty(tensor.shape, dtype=tensor.dtype)
        return nn.Parameter(bare, requires_grad=False) if isinstance(tensor, nn.Parameter) else bare

    weights = [*base.parameters(), *base.buffers()]
    return copy.deepcopy(base, {id(tensor): empty(tensor) for tensor in weights}).eval()


def lacks_numbers(base: nn.Module) -> bool:
    """Whether the model's weights have sizes alone."""
    weight = next(base.parameters())
    return weight.is_meta or isinstance(weight, FakeTensor)
