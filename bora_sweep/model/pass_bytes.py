"""The bytes that a forward and a backward pass hold over rows with adapters of their own, counted without weights.

The real code runs on two numbers of rows. All sizes in it grow linearly with the rows, so two counts give the rest.

Shapes: B rows, T tokens, H hidden, V vocabulary, P parameters of one adapter.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.layout import Layout
from bora_sweep.model.linear_modules import without_weights
from bora_sweep.model.live_bytes import FusedAttention, LiveBytes

FEWER, MORE = 2, 3
"""Rows that are counted; one alone is stored otherwise in places, as its strides are free."""


@dataclass(frozen=True)
class Line:
    """Bytes that grow linearly with the rows."""

    fixed: int
    per_row: int

    def __call__(self, rows: int) -> int:
        """The bytes of so many rows."""
        return self.fixed + rows * self.per_row


@dataclass(frozen=True, kw_only=True)
class PassBytes:
    """Bytes of passes over B rows, beside weights, banks and the banks' gradients; all but the linear head's loss."""

    forward: Line
    """At the peak of the forward pass."""
    held: Line
    """When it ends: what autograd saved, the rows' adapters, the last hidden state."""
    backward: Line
    """At the peak of the backward pass."""
    scoring: Line
    """At the peak of a forward pass without gradients."""
    scored: Line
    """When that ends."""
    head: nn.Linear | None
    """The linear layer that alone makes the logits, whose loss is not counted here; None: the loss is in the others."""


def count_passes(base: PreTrainedModel, layout: Layout, tokens: int, *, shared: bool, checkpointing: bool) -> PassBytes:
    """Count what passes over rows of T tokens hold.

    Args:
        base: The base model; its weights may be absent.
        layout: The adapters.
        tokens: T.
        shared: Whether all rows have one adapter.
        checkpointing: Whether the blocks of the base keep their inputs alone.

    Raises:
        InputError: As in `bora_sweep.model.checkpointing.find_blocks`.
        Exception: The model's code does not run without weights.
    """
    empty = without_weights(base)
    weights = [*empty.parameters(), *empty.buffers()]
    for module in empty.modules():
        if isinstance(module, nn.ModuleList):
            for block in module.children():
                block.forward = partial(_run_fused, block.forward)
    with LiveBytes(weights):
        adapted = AdaptedModel(empty, layout, checkpointed=checkpointing)
    count = partial(_count, adapted, weights, tokens, shared=shared)
    training, scoring = ([count(rows, train=train) for rows in (FEWER, MORE)] for train in (True, False))
    forward, held, backward = (_line(*sizes) for sizes in zip(*training, strict=True))
    score, scored, _ = (_line(*sizes) for sizes in zip(*scoring, strict=True))
    return PassBytes(forward=forward, held=held, backward=backward, scoring=score, scored=scored, head=adapted.head)


def _line(fewer: int, more: int) -> Line:
    per_row = (more - fewer) // (MORE - FEWER)
    return Line(fewer - FEWER * per_row, per_row)


def _count(
    adapted: AdaptedModel, weights: list[Tensor], tokens: int, rows: int, *, shared: bool, train: bool
) -> tuple[int, int, int]:
    """Bytes at the peak of the forward pass, at its end, and at the peak of the backward pass."""
    base, layout = adapted.base, adapted.layout
    with LiveBytes(weights) as live, torch.set_grad_enabled(train):
        tokens_BT = torch.zeros(rows, tokens, dtype=torch.long)
        size = (1 if shared else rows, layout.num_parameters)
        dtype = adapted.adapter_dtype or torch.promote_types(base.dtype, torch.float32)
        theta_BP = _Source.apply(torch.zeros((), requires_grad=True), size, dtype)
        output = _output(adapted, tokens_BT, theta_BP)
        forward, held = live.peak, live.now
        if not train:
            return forward, held, 0
        end = Sink.apply(output)
        del theta_BP, output
        live.restart()
        end.backward()
        return forward, held, live.peak


def _output(adapted: AdaptedModel, tokens_BT: Tensor, theta_BP: Tensor) -> Tensor:
    """What `Likelihood` takes from the model: the last hidden state, or the nats of all tokens where there is no head.

    Every token but the first of a row is scored.
    """
    if adapted.head is not None:
        return adapted.last_hidden_state(tokens_BT, theta_BP)
    logits_BTV = adapted(tokens_BT, theta_BP)
    before_M = torch.arange(tokens_BT.numel()).view_as(tokens_BT)[:, :-1].flatten()
    logits_MV = logits_BTV.flatten(0, 1)[before_M]
    del logits_BTV
    logits_MV = logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32))
    return F.cross_entropy(logits_MV, torch.zeros(len(logits_MV), dtype=torch.long), reduction="none")


def _run_fused(forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    """A block's forward pass with fused attention, also in the backward pass, where torch leaves such modes."""
    with FusedAttention():
        return forward(*inputs, **named)


class _Source(torch.autograd.Function):
    """Rows of adapters that come from elsewhere, and are freed when nothing needs them."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, size: tuple[int, int], dtype: torch.dtype) -> Tensor:  # noqa: ARG004
        """Rows of this size; `anchor` alone has a gradient."""
        return torch.empty(size, dtype=dtype)

    @staticmethod
    def backward(ctx: Any, grad_BP: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]  # noqa: ARG004
        """No gradient, but of the right shape."""
        return torch.zeros(()), None, None


class Sink(torch.autograd.Function):
    """Something that is computed from a tensor without keeping it."""

    @staticmethod
    def forward(ctx: Any, given: Tensor) -> Tensor:
        """A number."""
        ctx.size, ctx.dtype = given.shape, given.dtype
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]  # noqa: ARG004
        """A gradient of the tensor's size."""
        return torch.empty(ctx.size, dtype=ctx.dtype)
