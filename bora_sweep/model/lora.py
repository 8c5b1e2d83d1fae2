"""Low-rank adapters: LoRA (Hu et al. 2022), rsLoRA (Kalajdzievski 2023) and LoRA+ (Hayou et al. 2024).

Shapes: B rows (or 1, an adapter that all rows share), T tokens, R rank, I in, O out.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Site:
    """One adapted module: its path in the base model, its sizes, and whether its weight is stored as (I, O)."""

    name: str
    in_features: int
    out_features: int
    transposed: bool


def weight_OI(module: nn.Module) -> Tensor:
    """The weight of a Linear or Conv1D as (O, I); GPT-2's Conv1D stores it as (I, O).

    A weight that is sharded over processes (`train.shard_base`) is gathered, so all of them must ask for it.
    """
    weight: Tensor = module.weight  # type: ignore[assignment]
    weight = weight.full_tensor() if isinstance(weight, DTensor) else weight
    return weight.T if isinstance(module, Conv1D) else weight


@dataclass(frozen=True)
class LowRank:
    """`add_low_rank` with the scale s = alpha / r (LoRA, LoRA+) or alpha / sqrt(r) (rsLoRA)."""

    full_precision: ClassVar[bool] = False
    rank: int
    scale: float

    def shapes(self, site: Site) -> dict[str, tuple[int, ...]]:
        """A_RI and B_OR."""
        return {"A": (self.rank, site.in_features), "B": (site.out_features, self.rank)}

    def init_(self, parts: dict[str, Tensor], site: Site, module: nn.Module, generator: torch.Generator) -> None:  # noqa: ARG002
        """A uniform in [-1, 1] / sqrt(I) and B zero, as in PEFT."""
        parts["A"].uniform_(-1, 1, generator=generator).mul_(site.in_features**-0.5)

    def apply(self, output: Tensor, x: Tensor, parts: dict[str, Tensor], module: nn.Module) -> Tensor:  # noqa: ARG002
        """See `add_low_rank`."""
        return add_low_rank(output, x, parts["A"], parts["B"], self.scale)


def add_low_rank(output: Tensor, x: Tensor, A_BRI: Tensor, B_BOR: Tensor, scale: float) -> Tensor:
    """W x + s B_b A_b x for each row b, Eq. 3 of Eide & Frigessi 2025.

    Args:
        output: W x, of shape (B, T, O) or (B*T, O), as in `Variant.apply`; the result may be written in its place.
        x: Input, of shape (B, T, I) or (B*T, I).
        A_BRI: Each row's A.
        B_BOR: Each row's B.
        scale: s, alpha / r in the paper.

    Returns:
        A tensor like `output`.
    """
    rows, dtype = len(A_BRI), output.dtype  # under autocast a Linear casts its inputs to its output's dtype
    x_BTI = x.reshape(rows, -1, x.shape[-1]).to(dtype)
    A_BRI, B_BOR = A_BRI.to(dtype), B_BOR.to(dtype)
    if _is_writable(output, rows):
        return AddLowRank.apply(output, x_BTI, A_BRI, B_BOR, scale, True)
    output_BTO = output.reshape(rows, -1, output.shape[-1])
    return AddLowRank.apply(output_BTO, x_BTI, A_BRI, B_BOR, scale, False).view_as(output)


def _is_writable(output: Tensor, rows: int) -> bool:
    """Whether the result can take the output's place, which saves a copy: the output is a tensor (B, T, O) of its own.

    A Linear with a bias returns a view, and so does a Conv1D: to write there costs a backward pass three copies. The
    compiler needs no such help.
    """
    is_own = not (torch.compiler.is_compiling() or output._is_view() or (output.is_leaf and output.requires_grad))
    return is_own and output.dim() == 3 and len(output) == rows


class AddLowRank(torch.autograd.Function):
    """output + s x A' B' in an order of products that is fast for small ranks, with x saved once.

    In every product the R ranks are rows, never columns. A CPU's matrix product fills its registers with columns: with
    only 8 of them it takes two to four times as long.
    """

    @staticmethod
    def forward(
        ctx: Any, output_BTO: Tensor, x_BTI: Tensor, A_BRI: Tensor, B_BOR: Tensor, scale: float, in_place: bool
    ) -> Tensor:
        """output + s x A' B', shape (B, T, O); with `in_place` where the output was."""
        low_BRT = A_BRI @ x_BTI.mT
        ctx.save_for_backward(x_BTI, low_BRT, A_BRI, B_BOR)
        ctx.scale = scale
        if in_place:
            ctx.mark_dirty(output_BTO)
            return output_BTO.baddbmm_(low_BRT.mT, B_BOR.mT, alpha=scale)
        return torch.baddbmm(output_BTO, low_BRT.mT, B_BOR.mT, alpha=scale)

    @staticmethod
    def backward(ctx: Any, grad_BTO: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """The gradients of output, x, A and B; None where one is not needed."""
        x_BTI, low_BRT, A_BRI, B_BOR = ctx.saved_tensors
        _, needs_x, needs_A, needs_B, *_ = ctx.needs_input_grad
        grad_BRT = _scaled_(B_BOR.mT @ grad_BTO.mT, ctx.scale) if needs_x or needs_A else None
        return (
            grad_BTO,
            grad_BRT.mT @ A_BRI if needs_x and grad_BRT is not None else None,
            grad_BRT @ x_BTI if needs_A and grad_BRT is not None else None,
            _scaled_(low_BRT @ grad_BTO, ctx.scale).mT if needs_B else None,
            None,
            None,
        )


def _scaled_(product: Tensor, scale: float) -> Tensor:
    """s times a product, in place; the default of s is 1."""
    return product if scale == 1 else product.mul_(scale)
