"""Cross entropy of a linear head, computed in chunks so that the logits of all positions are never in memory at once.

Shapes: M positions of a batch, C of a chunk, H hidden, V vocabulary.
"""

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHUNK = {"cpu": 1024}
"""Positions whose logits are in memory at a time; a larger chunk makes nothing faster (benchmarks/loss.py)."""
CHUNK_ELSEWHERE = 2048
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
        probability_M = torch.empty(len(hidden_MH), dtype=space_CV.dtype, device=hidden_MH.device)
        score_MH = torch.empty_like(hidden_MH) if ctx.needs_input_grad[0] else None
        minus_one_C1 = space_CV.new_full((len(space_CV), 1), -1.0)
        for start in range(0, len(hidden_MH), len(space_CV)):
            rows = slice(start, start + len(space_CV))
            softmax_CV, target_C1 = space_CV[: len(probability_M[rows])], target_M[rows, None]
            _linear_into(softmax_CV, hidden_MH[rows], weight_VH, bias_V)
            torch.softmax(softmax_CV, dim=-1, out=softmax_CV)
            probability_M[rows] = softmax_CV.gather(1, target_C1).squeeze(1)
            if score_MH is not None:
                softmax_CV.scatter_add_(1, target_C1, minus_one_C1[: len(target_C1)])
                score_MH[rows] = softmax_CV.to(weight_VH.dtype) @ weight_VH
        ctx.save_for_backward(score_MH)
        nll_M = probability_M.log().neg_()
        beyond_M = probability_M < torch.finfo(probability_M.dtype).tiny
        if beyond_M.any():  # too small for the format: less than 1e-38 in float32
            logits_NV = F.linear(hidden_MH[beyond_M], weight_VH, bias_V).to(nll_M.dtype)
            nll_M[beyond_M] = F.cross_entropy(logits_NV, target_M[beyond_M], reduction="none")
        return nll_M

    @staticmethod
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor | None, None, None, None, None]:  # type: ignore[override]
        """The gradient of h; the other arguments have none."""
        (score_MH,) = ctx.saved_tensors
        return score_MH * grad_M[:, None].to(score_MH.dtype), None, None, None, None


def _linear_into(out_CV: Tensor, hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> None:
    """Write W h + b into `out_CV`."""
    same_dtype = out_CV.dtype == weight_VH.dtype == hidden_CH.dtype
    if not same_dtype or torch.is_autocast_enabled(hidden_CH.device.type):  # products with `out` ignore autocast
        out_CV.copy_(F.linear(hidden_CH, weight_VH, bias_V))
    elif bias_V is None:
        torch.mm(hidden_CH, weight_VH.t(), out=out_CV)
    else:
        torch.addmm(bias_V, hidden_CH, weight_VH.t(), out=out_CV)


def linear_nll(hidden_MH: Tensor, head: nn.Linear, target_M: Tensor) -> Tensor:
    """-log softmax(head(h))[target] of each position.

    Args:
        hidden_MH: The head's inputs.
        head: A frozen linear layer.
        target_M: The token that follows each position.

    Returns:
        nll_M in nats, in float32 at least, on the device of `target_M`.
    """
    device = target_M.device
    hidden_MH, target_M = hidden_MH.to(head.weight.device), target_M.to(head.weight.device)
    rows = max(1, min(len(hidden_MH), CHUNK.get(hidden_MH.device.type, CHUNK_ELSEWHERE)))
    dtype = torch.promote_types(hidden_MH.dtype, torch.float32)
    space_CV = workspace(rows, len(head.weight), dtype, hidden_MH.device)
    return LinearCrossEntropy.apply(hidden_MH, head.weight, head.bias, target_M, space_CV).to(device)


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
