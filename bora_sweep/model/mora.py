"""MoRA (Jiang et al. 2024, arXiv 2405.12130): one square matrix in place of LoRA's two thin ones.

Shapes: B rows (or 1, an adapter that all rows share), T tokens, I in, O out, S the side of the square matrix, N blocks
of S inputs, H = S / 2.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bora_sweep.errors import InputError
from bora_sweep.model.lora import Site


@dataclass(frozen=True)
class Mora:
    """W x + decompress(M compress(x)), M square with at most as many parameters as LoRA at `rank` (the paper's Eq. 9).

    The inputs are cut into N blocks of S; the last block is filled up with the first inputs. Block n is rotated as RoPE
    rotates position n, then multiplied by M. The N products end to end are cut at O, or repeated until they fill it. If
    O < I, inputs beyond the remaining blocks have no effect. All this follows the authors' code (type 6), except that S
    is rounded down to an even number, as in the paper's text.
    """

    full_precision: ClassVar[bool] = False
    rank: int

    def shapes(self, site: Site) -> dict[str, tuple[int, ...]]:
        """M_SS with S = floor(sqrt((I + O) r)), rounded down to an even number."""
        side = math.isqrt((site.in_features + site.out_features) * self.rank) // 2 * 2
        if not 2 <= side <= min(site.in_features, site.out_features):
            raise InputError(
                f"lora.variant=mora: lora.rank={self.rank} makes a square matrix of {side} for {site.name}, which has "
                f"{site.in_features} inputs and {site.out_features} outputs; need 2 to the smaller of them: change "
                "lora.rank, or leave the module out of lora.target_modules"
            )
        return {"M": (side, side)}

    def init_(self, parts: dict[str, Tensor], site: Site, module: nn.Module, generator: torch.Generator) -> None:
        """M stays zero: the initial module is unchanged."""

    def apply(self, output: Tensor, x: Tensor, parts: dict[str, Tensor], module: nn.Module) -> Tensor:  # noqa: ARG002
        """W x + decompress(M_b compress(x)) for each row b."""
        M_BSS, out_features = parts["M"], output.shape[-1]
        rows, side = M_BSS.shape[:2]
        blocks = math.ceil(min(x.shape[-1], out_features) / side)
        x_BTI = x.reshape(rows, -1, x.shape[-1])
        filled = torch.cat([x_BTI, x_BTI[..., : max(0, blocks * side - x.shape[-1])]], dim=-1)[..., : blocks * side]
        rotated_BTNS = rotate(filled.unflatten(-1, (blocks, side)))
        products_BTO = (rotated_BTNS.flatten(1, 2) @ M_BSS.mT).reshape(rows, -1, blocks * side)
        fitted_BTO = products_BTO.repeat(1, 1, math.ceil(out_features / (blocks * side)))[..., :out_features]
        return output + fitted_BTO.view_as(output)


def rotate(x_BTNS: Tensor) -> Tensor:
    """Rotate block n as RoPE rotates position n: the pair (j, j + S/2) by the angle n / 10000^(2j / S)."""
    blocks, side = x_BTNS.shape[-2:]
    dtype = torch.promote_types(x_BTNS.dtype, torch.float32)
    frequency = 10_000.0 ** -(torch.arange(0, side, 2, device=x_BTNS.device, dtype=dtype) / side)
    angle_NH = torch.arange(blocks, device=x_BTNS.device, dtype=dtype)[:, None] * frequency
    cos_NH, sin_NH = angle_NH.cos().to(x_BTNS.dtype), angle_NH.sin().to(x_BTNS.dtype)
    first, second = x_BTNS.chunk(2, dim=-1)
    return torch.cat([first * cos_NH - second * sin_NH, second * cos_NH + first * sin_NH], dim=-1)
