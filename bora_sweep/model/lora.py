"""What an adapter adds to a module: LoRA [1] and its kin rsLoRA [2] and LoRA+ [3]; DoRA [4]; MoRA [5].

Each takes the adapters of many rows at once, as views into the rows of a bank (`bora_sweep.model.layout.Layout`).

Shapes: B rows (or 1, an adapter that all rows share), T tokens, R rank, I in, O out; for MoRA S, the side of its square
matrix, and N, the blocks of S inputs.

[1] Hu et al. 2022, arXiv 2106.09685. [2] Kalajdzievski 2023, arXiv 2312.03732. [3] Hayou et al. 2024, arXiv 2402.12354.
[4] Liu et al. 2024, arXiv 2402.09353. [5] Jiang et al. 2024, arXiv 2405.12130.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from bora_sweep.config import LoraConfig
from bora_sweep.errors import InputError


@dataclass(frozen=True)
class Site:
    """One adapted module: its path in the base model, its sizes, and whether its weight is kept as (I, O)."""

    name: str
    in_features: int
    out_features: int
    transposed: bool


class Variant(Protocol):
    """How one kind of adapter is laid out, begins and acts."""

    full_precision: ClassVar[bool]
    """Whether `parts` come in the bank's precision; else they come in that of the base."""

    def shapes(self, site: Site) -> dict[str, tuple[int, ...]]:
        """The parts of an adapter at `site`, by the kind of matrix.

        Raises:
            InputError: The module cannot be adapted so.
        """
        ...

    def start_(self, parts: dict[str, Tensor], site: Site, module: nn.Module, generator: torch.Generator) -> None:
        """Write into one adapter's zeros, in place, values that leave the module as it is.

        Raises:
            InputError: The module cannot be adapted so.
        """
        ...

    def apply(self, output: Tensor, x: Tensor, parts: dict[str, Tensor], module: nn.Module) -> Tensor:
        """The adapted module's output, where `output` is that of `module` at `x`.

        Rows are the outermost part of `x`, whether it comes as (B, T, I) or flattened to (B*T, I); a single adapter
        (B = 1) then takes all tokens as its own.
        """
        ...


def make_variant(config: LoraConfig) -> Variant:
    """What `config.variant` names."""
    match config.variant:
        case "dora":
            return Dora(config.rank, config.scale)
        case "mora":
            return Mora(config.rank)
        case _:
            return LowRank(config.rank, config.scale)


@dataclass(frozen=True)
class LowRank:
    """W x + s B A x, Eq. 3, with s = alpha / r (LoRA, LoRA+) or alpha / sqrt(r) (rsLoRA)."""

    full_precision: ClassVar[bool] = False
    rank: int
    scale: float

    def shapes(self, site: Site) -> dict[str, tuple[int, ...]]:
        """A_RI and B_OR."""
        return {"A": (self.rank, site.in_features), "B": (site.out_features, self.rank)}

    def start_(self, parts: dict[str, Tensor], site: Site, module: nn.Module, generator: torch.Generator) -> None:  # noqa: ARG002
        """As PEFT has it: A uniform within 1 / sqrt(I), B zero."""
        parts["A"].uniform_(-1, 1, generator=generator).mul_(site.in_features**-0.5)

    def apply(self, output: Tensor, x: Tensor, parts: dict[str, Tensor], module: nn.Module) -> Tensor:  # noqa: ARG002
        """W x + s B_b A_b x for each row b."""
        return add_low_rank(output, x, parts["A"], parts["B"], self.scale)


@dataclass(frozen=True)
class Dora(LowRank):
    """m_o (W_o + s B_o A) x / ||W_o + s B_o A|| for each output o, the norm held constant in gradients ([4], 4.3)."""

    full_precision: ClassVar[bool] = True  # m moves by per cents of itself, which bfloat16 would round away

    def shapes(self, site: Site) -> dict[str, tuple[int, ...]]:
        """A_RI, B_OR and the magnitude m_O."""
        return {**super().shapes(site), "magnitude": (site.out_features,)}

    def start_(self, parts: dict[str, Tensor], site: Site, module: nn.Module, generator: torch.Generator) -> None:
        """A and B as in LoRA, m_o = ||W_o||."""
        super().start_(parts, site, module, generator)
        weight = weight_OI(module)
        if not weight.is_floating_point() or weight.shape != (site.out_features, site.in_features):
            raise InputError(
                f"lora.variant=dora: {site.name} keeps its weights packed, as {weight.dtype} of shape "
                f"{tuple(weight.shape)}, of which no norm can be taken; set lora.variant=lora, or give a base that is "
                "not quantised"
            )
        parts["magnitude"].copy_(_row_norms(module))
        if not parts["magnitude"].all():
            raise InputError(
                f"lora.variant=dora: {site.name} has outputs whose weights are all 0, and so no direction to adapt; "
                "leave it out of lora.target_modules, or set lora.variant=lora"
            )

    def apply(self, output: Tensor, x: Tensor, parts: dict[str, Tensor], module: nn.Module) -> Tensor:
        """As above for each row's A, B and m; the bias is added after the magnitude, untouched by it."""
        A_BRI, B_BOR = parts["A"].to(x.dtype), parts["B"].to(x.dtype)
        adapted = add_low_rank(output, x, A_BRI, B_BOR, self.scale)
        excess_BO = parts["magnitude"] / adapted_norms(module, A_BRI, B_BOR, self.scale) - 1
        bias: Tensor | None = module.bias  # type: ignore[assignment]
        linear = adapted if bias is None else adapted - bias.to(adapted.dtype)
        linear_BTO = linear.reshape(len(A_BRI), -1, linear.shape[-1])
        return adapted + (excess_BO.to(adapted.dtype)[:, None] * linear_BTO).view_as(adapted)


@dataclass(frozen=True)
class Mora:
    """W x + decompress(M compress(x)), M square, with as many parameters as LoRA at `rank`, or just under ([5], Eq. 9).

    Inputs are cut into N blocks of S, the last one filled up from the first inputs. Block n is rotated by n, as RoPE
    rotates position n, and multiplied by M; the N products laid end to end are cut at O, or repeated until they fill
    it. Where O < I, inputs past the blocks that remain do not count. All as in the authors' code (type 6), but that S
    is rounded down, as in the paper's text, and there to the next even number.
    """

    full_precision: ClassVar[bool] = False
    rank: int

    def shapes(self, site: Site) -> dict[str, tuple[int, ...]]:
        """M_SS, S = floor(sqrt((I + O) r)), even."""
        side = math.isqrt((site.in_features + site.out_features) * self.rank) // 2 * 2
        if not 2 <= side <= min(site.in_features, site.out_features):
            raise InputError(
                f"lora.variant=mora: lora.rank={self.rank} makes a square matrix of {side} for {site.name}, which has "
                f"{site.in_features} inputs and {site.out_features} outputs; need 2 to the lesser of them: change "
                "lora.rank, or leave the module out of lora.target_modules"
            )
        return {"M": (side, side)}

    def start_(self, parts: dict[str, Tensor], site: Site, module: nn.Module, generator: torch.Generator) -> None:
        """M stays zero."""

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


def add_low_rank(output: Tensor, x: Tensor, A_BRI: Tensor, B_BOR: Tensor, scale: float) -> Tensor:
    """W x + s B_b A_b x for each row b, Eq. 3, where `output` is W x; rows as in `Variant.apply`."""
    rows, dtype = len(A_BRI), output.dtype  # under autocast the output's, which a Linear's inputs are cast to
    x_BTI = x.reshape(rows, -1, x.shape[-1]).to(dtype)
    output_BTO = output.reshape(rows, -1, output.shape[-1])
    return AddLowRank.apply(output_BTO, x_BTI, A_BRI.to(dtype), B_BOR.to(dtype), scale).view_as(output)


class AddLowRank(torch.autograd.Function):
    """output + s x A' B' with each product in the order that small ranks are fast in, and x saved once.

    Every product has the R ranks as its rows, never as its columns, which a CPU's matrix product fills its registers
    with: those of 8 columns take two to four times as long.
    """

    @staticmethod
    def forward(ctx: Any, output_BTO: Tensor, x_BTI: Tensor, A_BRI: Tensor, B_BOR: Tensor, scale: float) -> Tensor:
        """As in the class."""
        low_BRT = A_BRI @ x_BTI.mT
        ctx.save_for_backward(x_BTI, low_BRT, A_BRI, B_BOR)
        ctx.scale = scale
        return torch.baddbmm(output_BTO, low_BRT.mT, B_BOR.mT, alpha=scale)

    @staticmethod
    def backward(ctx: Any, grad_BTO: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Of output, x, A and B."""
        x_BTI, low_BRT, A_BRI, B_BOR = ctx.saved_tensors
        _, needs_x, needs_A, needs_B, _ = ctx.needs_input_grad
        grad_BRT = (B_BOR.mT @ grad_BTO.mT).mul_(ctx.scale) if needs_x or needs_A else None
        return (
            grad_BTO,
            grad_BRT.mT @ A_BRI if needs_x and grad_BRT is not None else None,
            grad_BRT @ x_BTI if needs_A and grad_BRT is not None else None,
            (low_BRT @ grad_BTO).mul_(ctx.scale).mT if needs_B else None,
            None,
        )


@torch.no_grad()
def adapted_norms(module: nn.Module, A_BRI: Tensor, B_BOR: Tensor, scale: float) -> Tensor:
    """||W_o + s B_bo A_b|| for each row b and output o, norms_BO, without a gradient.

    From ||W_o||^2 + 2 s <W_o, (B A)_o> + s^2 ||(B A)_o||^2 by W A^T and A A^T: no O x I matrix is made for a row.
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


def weight_OI(module: nn.Module) -> Tensor:
    """A Linear's weight; a Conv1D's transposed, as GPT-2 keeps it as (I, O)."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.T if isinstance(module, Conv1D) else weight


def rotate(x_BTNS: Tensor) -> Tensor:
    """Block n of each token rotated as RoPE rotates position n: pairs (j, j + S/2) by the angle n / 10000^(2j / S)."""
    blocks, side = x_BTNS.shape[-2:]
    dtype = torch.promote_types(x_BTNS.dtype, torch.float32)
    frequency = 10_000.0 ** -(torch.arange(0, side, 2, device=x_BTNS.device, dtype=dtype) / side)
    angle_NH = torch.arange(blocks, device=x_BTNS.device, dtype=dtype)[:, None] * frequency
    cos_NH, sin_NH = angle_NH.cos().to(x_BTNS.dtype), angle_NH.sin().to(x_BTNS.dtype)
    first, second = x_BTNS.chunk(2, dim=-1)
    return torch.cat([first * cos_NH - second * sin_NH, second * cos_NH + first * sin_NH], dim=-1)
