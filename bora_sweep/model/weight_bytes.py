"""Bytes of the base model's weights as they are stored, plain or quantised (`model.quantization`).

Shapes: O out, I in of a linear layer.
"""

from typing import Literal

from torch import nn

from bora_sweep.errors import InputError
from bora_sweep.model.linear_modules import linear_modules
from bora_sweep.model.lora import weight_OI

Quantization = Literal["nf4", "int8", "fp8"]

NF4_BLOCK, NF4_SCALES = 64, 256
"""Weights with a scale of one byte, and such scales with a float32 scale of their own."""
FP8_BLOCK = 128
"""Rows and columns of a square of weights with a float32 scale."""
FLOAT_BYTES = 4


def stored_bytes(base: nn.Module, quantization: Quantization | None) -> int:
    """Bytes of all weights; they may be absent.

    Args:
        base: The base model in the type of what is not quantised.
        quantization: How the linear layers of its blocks are stored; None: as they are.
    """
    plain = sum(weight.nbytes for weight in base.parameters())
    if quantization is None:
        return plain
    weights_OI = [weight_OI(module) for module in packed_layers(base, quantization)]
    quantized = sum(_quantized_bytes(weight.shape[0], weight.shape[1], quantization) for weight in weights_OI)
    return plain - sum(weight.nbytes for weight in weights_OI) + quantized


def dense_bytes(base: nn.Module, quantization: Quantization | None) -> int:
    """Bytes of the largest weight that is dequantised for its product, in the base's type; 0 without quantisation."""
    if quantization is None:
        return 0
    return max((weight_OI(module).nbytes for module in packed_layers(base, quantization)), default=0)


def packed_layers(base: nn.Module, quantization: Quantization) -> list[nn.Module]:
    """The layers that `quantization` packs: torchao has no Conv1D.

    Raises:
        InputError: There is none.
    """
    packed = [module for module in block_linears(base) if quantization != "fp8" or isinstance(module, nn.Linear)]
    if not packed:
        raise InputError(
            f"model.quantization={quantization}: packs no layer of a {type(base).__name__}; set another, or drop it"
        )
    return packed


def block_linears(base: nn.Module) -> list[nn.Module]:
    """The linear layers of the model's blocks, which are the elements of its lists of modules."""
    lists = [f"{name}." for name, module in base.named_modules() if isinstance(module, nn.ModuleList)]
    return [module for name, module in linear_modules(base).items() if name.startswith(tuple(lists))]


def _quantized_bytes(rows: int, columns: int, quantization: Quantization) -> int:
    """Bytes of a weight of O rows and I columns, with its scales."""
    number = rows * columns
    if quantization == "int8":
        return number + FLOAT_BYTES * rows
    if quantization == "fp8":
        return number + FLOAT_BYTES * -(-rows // FP8_BLOCK) * -(-columns // FP8_BLOCK)
    scales = -(-number // NF4_BLOCK)
    return -(-number // 2) + scales + FLOAT_BYTES * -(-scales // NF4_SCALES)
