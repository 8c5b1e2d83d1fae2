"""The step of `bora_sweep.train.optim.ProximalAdam` in one pass over a bank, its gradient and its moments.

Shapes: K adapters (one per task), P parameters of one adapter.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def proximal_adam(
    bank,
    gradient,
    moment,
    square,
    rate,
    precision,
    rows,
    columns,
    lr,
    one_minus_beta1,
    beta2,
    one_minus_beta2,
    correction1,
    correction2,
    eps,
    RATE_STRIDE: tl.constexpr,
    PRECISION_STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one row. Programs of the same block of all rows are neighbours and share its rates."""
    program = tl.program_id(0)
    row, column = program % rows, (program // rows) * BLOCK + tl.arange(0, BLOCK)
    there = column < columns
    place = row.to(tl.int64) * columns + column
    g = tl.load(gradient + place, there)
    m = tl.load(moment + place, there)
    m += one_minus_beta1 * (g - m)
    v = beta2 * tl.load(square + place, there) + one_minus_beta2 * g * g
    metric = tl.sqrt_rn(tl.div_rn(v, correction2)) + eps  # S
    step = lr * tl.load(rate + column * RATE_STRIDE, there)
    pull = step * tl.load(precision + column * PRECISION_STRIDE, there)
    theta = tl.load(bank + place, there) - tl.div_rn(tl.div_rn(step, correction1) * m, metric)
    tl.store(bank + place, theta * tl.div_rn(metric, metric + pull), there)
    tl.store(moment + place, m, there)
    tl.store(square + place, v, there)


def proximal_adam_(
    bank: Tensor,
    gradient: Tensor,
    moment: Tensor,
    square: Tensor,
    *,
    step: float,
    lr: float,
    rate: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    precision: float | Tensor,
) -> None:
    """One step of a bank and its moments, in place; all in float32 and contiguous.

    Args:
        bank: theta_KP or theta_P.
        gradient: Of the likelihood.
        moment: Mean of the gradients.
        square: Mean of their squares.
        step: Steps with this one.
        lr: The learning rate.
        rate: A factor on it, one or rate_P.
        betas: Decay of the moments.
        eps: What is added to the root of `square`.
        precision: p, one or p_P.
    """
    columns = bank.shape[-1]
    rows = bank.numel() // columns
    rate_P, precision_P = (_of_each_column(value, bank) for value in (rate, precision))
    with torch.cuda.device_of(bank):
        launch: Any = proximal_adam[(rows * triton.cdiv(columns, BLOCK),)]
        launch(
            bank,
            gradient.contiguous(),
            moment,
            square,
            rate_P,
            precision_P,
            rows,
            columns,
            lr,
            1 - betas[0],
            betas[1],
            1 - betas[1],
            1 - betas[0] ** step,
            1 - betas[1] ** step,
            eps,
            RATE_STRIDE=rate_P.stride(0),
            PRECISION_STRIDE=precision_P.stride(0),
            BLOCK=BLOCK,
        )
    torch.autograd.graph.increment_version(bank)  # as operations of torch do: what autograd saved of it is stale


def _of_each_column(value: float | Tensor, bank: Tensor) -> Tensor:
    """A number as P equal ones, without their memory and without a copy from the host, which would wait."""
    if not isinstance(value, Tensor):
        value = torch.full((), value, device=bank.device)
    return value.to(bank).expand(bank.shape[-1])
