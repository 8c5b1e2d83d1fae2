"""DoRA (Liu et al. 2024, arXiv 2402.09353): a low-rank adapter whose outputs have magnitudes of their own.

Shapes: B rows (or 1, an adapter that all rows share), T tokens, R rank, I in, O out.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bora_sweep.errors import InputError
from bora_sweep.model.lora import LowRank, Site, add_low_rank, weight_OI


@dataclass(frozen=True)
class Dora(LowRank):
    """m_o (W_o + s B_o A) x / ||W_o + s B_o A|| for each output o, the norm constant in gradients (section 4.3)."""

    full_precision: ClassVar[bool] = True  # m changes by a few per cent, which bfloat16 would round away

    def shapes(self, site: Site) -> dict[str, tuple[int, ...]]:
        """A_RI, B_OR and the magnitude m_O."""
        return {**super().shapes(site), "magnitude": (site.out_features,)}

    def init_(self, parts: dict[str, Tensor], site: Site, module: nn.Module, generator: torch.Generator) -> None:
        """A and B as in LoRA, m_o = ||W_o||."""
        super().init_(parts, site, module, generator)
        weight = weight_OI(module)
        if not weight.is_floating_point() or weight.shape != (site.out_features, site.in_features):
            raise InputError(
                f"lora.variant=dora: {site.name} keeps its weights packed, as {weight.dtype} of shape "
                f"{tuple(weight.shape)}, which have no norm; set lora.variant=lora, or give a base that is not "
                "quantised"
            )
        parts["magnitude"].copy_(_row_norms(module))
        if not parts["magnitude"].all():
            raise InputError(
                f"lora.variant=dora: {site.name} has outputs whose weights are all 0, without a direction to adapt; "
                "leave it out of lora.target_modules, or set lora.variant=lora"
            )

    def apply(self, output: Tensor, x: Tensor, parts: dict[str, Tensor], module: nn.Module) -> Tensor:
        """The class's formula with each row's own A, B and m; the bias is added after the magnitude."""
        A_BRI, B_BOR = parts["A"].to(x.dtype), parts["B"].to(x.dtype)
        adapted = add_low_rank(output, x, A_BRI, B_BOR, self.scale)
        excess_BO = parts["magnitude"] / adapted_norms(module, A_BRI, B_BOR, self.scale) - 1
        bias: Tensor | None = module.bias  # type: ignore[assignment]
        linear = adapted if bias is None else adapted - bias.to(adapted.dtype)
        linear_BTO = linear.reshape(len(A_BRI), -1, linear.shape[-1])
        return adapted + (excess_BO.to(adapted.dtype)[:, None] * linear_BTO).view_as(adapted)


@torch.no_grad()
def adapted_norms(module: nn.Module, A_BRI: Tensor, B_BOR: Tensor, scale: float) -> Tensor:
    """||W_o + s B_bo A_b|| for each row b and output o, without a gradient; the denominator of DoRA.

    It expands to ||W_o||^2 + 2 s <W_o, (B A)_o> + s^2 ||(B A)_o||^2, which W A' and A A' give without any O x I matrix
    per row.

    Args:
        module: The adapted module; its weight is W.
        A_BRI: Each row's A.
        B_BOR: Each row's B.
        scale: s.

    Returns:
        norms_BO, in float32 at least.
    """
    WA_BRO = F.linear(A_BRI, weight_OI(module))
    AA_BRR = A_BRI @ A_BRI.mT
    cross_BO = (WA_BRO.mT * B_BOR).sum(dim=-1)
    square_BO = (B_BOR @ AA_BRR * B_BOR).sum(dim=-1)
    return (_row_norms(module).square() + 2 * scale * cross_BO + scale**2 * square_BO).sqrt()


def _row_norms(module: nn.Module) -> Tensor:
    """||W_o|| for each output o, in float32 at least."""
    weight = weight_OI(module)
    return torch.linalg.vector_norm(weight, dim=-1, dtype=torch.promote_types(weight.dtype, torch.float32))
