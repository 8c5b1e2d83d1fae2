"""Nats of each row's target from its logits, and the logits' gradient, in one kernel.

Shapes: C rows, V vocabulary.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
LOWEST = tl.constexpr(-3.4028234663852886e38)
"""Of float32; below it nothing but -inf, whose difference from itself is no number."""


@triton.jit
def cross_entropy(
    logits, target, nats, error, columns, logits_stride, error_stride, WITH_ERROR: tl.constexpr, BLOCK: tl.constexpr
):
    """One row, read once for its sum, and again, from the cache if it fits, for its softmax."""
    row = tl.program_id(0).to(tl.int64)
    logits, error, place = logits + row * logits_stride, error + row * error_stride, tl.load(target + row)
    of_target = tl.load(logits + place)
    largest, total = tl.full((), LOWEST, tl.float32), tl.full((), 0.0, tl.float32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(logits + column, column < columns, -float("inf"))
        larger = tl.maximum(largest, tl.max(x, 0))
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(x - larger), 0)
        largest = larger
    tl.store(nats + row, (largest - of_target) + tl.log(total))  # two terms of one sign: neither cancels the other
    if WITH_ERROR:
        for start in range(0, columns, BLOCK):
            column = start + tl.arange(0, BLOCK)
            x = tl.load(logits + column, column < columns, -float("inf"))
            softmax = tl.exp(x - largest) / total
            tl.store(error + column, tl.where(column == place, softmax - 1, softmax), column < columns)


def cross_entropy_(logits_CV: Tensor, target_C: Tensor, nats_C: Tensor, error_CV: Tensor | None) -> None:
    """Write -log softmax(logits)[target] into `nats_C`, and softmax(logits) - e_target into `error_CV`.

    Args:
        logits_CV: In float32; a row's numbers are neighbours.
        target_C: The column of each row.
        nats_C: In float32.
        error_CV: In the precision of the next product, or `logits_CV` itself; None if nobody needs it.
    """
    written = logits_CV if error_CV is None else error_CV
    with torch.cuda.device_of(logits_CV):
        launch: Any = cross_entropy[(len(logits_CV),)]
        launch(
            logits_CV,
            target_C,
            nats_C,
            written,
            logits_CV.shape[1],
            logits_CV.stride(0),
            written.stride(0),
            WITH_ERROR=error_CV is not None,
            BLOCK=min(BLOCK, triton.next_power_of_2(logits_CV.shape[1])),
            num_warps=8,
        )
