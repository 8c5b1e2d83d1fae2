"""Cross entropy of a linear head, computed in chunks so that the logits of all positions are never in memory at once.

Shapes: M positions of a batch, C of a chunk, H hidden, V vocabulary.
"""

import math
import threading
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.autocast_mode import is_autocast_available
from torch.nn import functional as F

from bora_sweep.kernels import has_kernels_for

CHUNK = {"cpu": 1024}
"""Positions whose logits are in memory at a time; a larger chunk makes nothing faster (benchmarks/loss.py)."""
CHUNK_ELSEWHERE = 2048
READABLE = {"cpu"}
"""Devices whose numbers the program can look at without waiting for them."""
_reused = threading.local()


class LinearCrossEntropy(torch.autograd.Function):
    """-log softmax(W h + b)[target] of each position with W and b frozen, chunk by chunk.

    The loss at position m depends on h_m alone. So the logits also give its gradient, W' (softmax(W h_m + b) -
    e_target). The forward pass computes both for each chunk, and the backward pass scales the gradient. The number of
    operations is that of a plain loss; the memory is M x H numbers instead of M x V.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_MH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, target_M: Tensor, space_CV: Tensor
    ) -> Tensor:
        """nll_M in nats; `space_CV` is memory for the logits of C positions, and then for their softmax."""
        nll_M = torch.empty(len(hidden_MH), dtype=space_CV.dtype, device=hidden_MH.device)
        score_MH = torch.empty_like(hidden_MH) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden_MH), len(space_CV)):
            rows = slice(start, start + len(space_CV))
            nats_C, target_C = nll_M[rows], target_M[rows]
            logits_CV = space_CV[: len(nats_C)]
            _linear_into(logits_CV, hidden_MH[rows].to(weight_VH.dtype), weight_VH, bias_V)
            if score_MH is None:
                _write_nats(nats_C, logits_CV, target_C)
            else:
                score_MH[rows] = _write_nats(nats_C, logits_CV, target_C, weight_VH.dtype) @ weight_VH
        ctx.save_for_backward(score_MH)
        if nll_M.device.type in READABLE:
            _write_nats_of_rare(nll_M, hidden_MH, weight_VH, bias_V, target_M)
        return nll_M

    @staticmethod
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor | None, None, None, None, None]:  # type: ignore[override]
        """The gradient of h; the other arguments have none."""
        (score_MH,) = ctx.saved_tensors
        return score_MH * grad_M[:, None].to(score_MH.dtype), None, None, None, None


def _linear_into(out_CV: Tensor, hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> None:
    """Write W h + b into `out_CV`, without a copy in the weights' precision where the device can."""
    if out_CV.dtype != weight_VH.dtype and not _writes_float32(weight_VH.device, weight_VH.dtype):
        out_CV.copy_(F.linear(hidden_CH, weight_VH, bias_V))
    elif out_CV.dtype != weight_VH.dtype:
        torch.mm(hidden_CH, weight_VH.t(), out_dtype=out_CV.dtype, out=out_CV)
        if bias_V is not None:
            out_CV.add_(bias_V)
    elif bias_V is None:
        torch.mm(hidden_CH, weight_VH.t(), out=out_CV)
    else:
        torch.addmm(bias_V, hidden_CH, weight_VH.t(), out=out_CV)


@cache
def _writes_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a product of matrices of this precision can be written in float32, as torch 2.8 and later do on CUDA."""
    matrix = torch.zeros(16, 16, dtype=dtype, device=device)
    try:
        torch.mm(matrix, matrix, out_dtype=torch.float32, out=matrix.float())
    except (TypeError, RuntimeError):  # no such argument; no such operation on this device
        return False
    return True


def _write_nats(nats_C: Tensor, logits_CV: Tensor, target_C: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Write -log softmax(logits)[target] into `nats_C`; the logits are overwritten.

    Returns:
        softmax(logits) - e_target in `dtype`; of no use if that is None.
    """
    if has_kernels_for(logits_CV):
        from bora_sweep.kernels.cross_entropy import cross_entropy_

        error_CV = logits_CV if dtype in (None, logits_CV.dtype) else torch.empty_like(logits_CV, dtype=dtype)
        cross_entropy_(logits_CV, target_C, nats_C, None if dtype is None else error_CV)
        return error_CV
    target_C1 = target_C[:, None]
    if logits_CV.device.type in READABLE:  # one pass gives both; `_write_nats_of_rare` looks for what it cannot give
        softmax_CV = torch.softmax(logits_CV, dim=-1, out=logits_CV)
        nats_C.copy_(softmax_CV.gather(1, target_C1).squeeze(1).log_().neg_())
    else:  # another pass instead of a look
        nats_C.copy_(F.cross_entropy(logits_CV, target_C, reduction="none"))
        softmax_CV = torch.softmax(logits_CV, dim=-1, out=logits_CV)
    softmax_CV.scatter_add_(1, target_C1, softmax_CV.new_full(target_C1.shape, -1.0))
    return softmax_CV if dtype is None else softmax_CV.to(dtype)


def _write_nats_of_rare(
    nll_M: Tensor, hidden_MH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, target_M: Tensor
) -> None:
    """Write the nats anew where the probability is too small for its format: less than 1e-38 in float32."""
    beyond_M = nll_M > -math.log(torch.finfo(nll_M.dtype).tiny)
    if beyond_M.any():
        logits_NV = F.linear(hidden_MH[beyond_M].to(weight_VH.dtype), weight_VH, bias_V).to(nll_M.dtype)
        nll_M[beyond_M] = F.cross_entropy(logits_NV, target_M[beyond_M], reduction="none")


def linear_nll(hidden_MH: Tensor, head: nn.Linear, target_M: Tensor) -> Tensor:
    """-log softmax(head(h))[target] of each position.

    Args:
        hidden_MH: The head's inputs.
        head: A frozen linear layer.
        target_M: The token that follows each position.

    Returns:
        nll_M in nats, in float32 at least, on the device of `target_M`.
    """
    asked_for, device = target_M.device, head.weight.device
    hidden_MH, target_M = hidden_MH.to(device), target_M.to(device)
    rows = max(1, min(len(hidden_MH), CHUNK.get(device.type, CHUNK_ELSEWHERE)))
    dtype = torch.promote_types(hidden_MH.dtype, torch.float32)
    space_CV = workspace(rows, len(head.weight), dtype, device)
    weight_VH, bias_V = head.weight, head.bias
    if not (is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)):
        return LinearCrossEntropy.apply(hidden_MH, weight_VH, bias_V, target_M, space_CV).to(asked_for)
    if dtype == torch.float32:  # cast once, and not for each chunk
        low = torch.get_autocast_dtype(device.type)
        weight_VH, bias_V = weight_VH.to(low), None if bias_V is None else bias_V.to(low)
    with torch.autocast(device.type, enabled=False):
        return LinearCrossEntropy.apply(hidden_MH, weight_VH, bias_V, target_M, space_CV).to(asked_for)


def workspace(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for a chunk's logits, of shape (rows, columns). On a CPU each thread reuses its own: mapping is slow.

    Args:
        rows: Positions of a chunk.
        columns: Vocabulary.
        dtype: Of the logits.
        device: Where they are.
    """
    if device.type != "cpu":
        return torch.empty(rows, columns, dtype=dtype, device=device)
    space = getattr(_reused, "space", None)
    if space is None or len(space) < rows or space.shape[1] != columns or space.dtype != dtype:
        space = _reused.space = torch.empty(rows, columns, dtype=dtype)
    return space[:rows]
