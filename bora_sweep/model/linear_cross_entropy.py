"""Cross entropy of a linear head, computed in chunks so that the logits of all positions never stand at once.

Shapes: M positions of a batch, C of a chunk, H hidden, V vocabulary.
"""

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHUNK = {"cpu": 1024}
"""Positions whose logits stand at a time, by benchmarks/loss.py: matrix products gain no more by a larger one."""
CHUNK_ELSEWHERE = 2048
_kept = threading.local()


class LinearCrossEntropy(torch.autograd.Function):
    """-log softmax(W h + b)[target] of each position, W and b frozen, without ever holding the logits of all.

    Position m's loss depends on h_m alone, so its gradient, W' (softmax(W h_m + b) - e_target), is there as soon as the
    logits are: both are computed chunk by chunk in the forward pass, and the backward pass scales. It is what a plain
    loss costs in operations, and M x H numbers of memory where that takes M x V.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_MH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, target_M: Tensor, space_CV: Tensor
    ) -> Tensor:
        """nll_M, in float32 at least; the logits of C positions at a time lie in `space_CV`, then their softmax."""
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
        if beyond_M.any():  # of the format's range: less than 1e-38
            logits_NV = F.linear(hidden_MH[beyond_M], weight_VH, bias_V).to(nll_M.dtype)
            nll_M[beyond_M] = F.cross_entropy(logits_NV, target_M[beyond_M], reduction="none")
        return nll_M

    @staticmethod
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor | None, None, None, None, None]:  # type: ignore[override]
        """The gradient of h alone."""
        (score_MH,) = ctx.saved_tensors
        return score_MH * grad_M[:, None].to(score_MH.dtype), None, None, None, None


def _linear_into(out_CV: Tensor, hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> None:
    """W h + b, written where it is wanted."""
    alike = out_CV.dtype == weight_VH.dtype == hidden_CH.dtype
    if not alike or torch.is_autocast_enabled(hidden_CH.device.type):  # which products into `out` do not go by
        out_CV.copy_(F.linear(hidden_CH, weight_VH, bias_V))
    elif bias_V is None:
        torch.mm(hidden_CH, weight_VH.t(), out=out_CV)
    else:
        torch.addmm(bias_V, hidden_CH, weight_VH.t(), out=out_CV)


def linear_nll(hidden_MH: Tensor, head: nn.Linear, target_M: Tensor) -> Tensor:
    """-log softmax(head(h))[target] of each position in nats; `head` gets no gradient."""
    rows = max(1, min(len(hidden_MH), CHUNK.get(hidden_MH.device.type, CHUNK_ELSEWHERE)))
    dtype = torch.promote_types(hidden_MH.dtype, torch.float32)
    space_CV = workspace(rows, len(head.weight), dtype, hidden_MH.device)
    return LinearCrossEntropy.apply(hidden_MH, head.weight, head.bias, target_M, space_CV)


def workspace(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for a chunk's logits; on a CPU a thread's own, used again: new pages would have to be mapped each time."""
    if device.type != "cpu":
        return torch.empty(rows, columns, dtype=dtype, device=device)
    kept = getattr(_kept, "space", None)
    if kept is None or len(kept) < rows or kept.shape[1] != columns or kept.dtype != dtype:
        kept = _kept.space = torch.empty(rows, columns, dtype=dtype)
    return kept[:rows]
