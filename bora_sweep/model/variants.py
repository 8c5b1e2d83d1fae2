"""The interface of an adapter variant, and the choice of one by `lora.variant`.

Each variant applies the adapters of many batch rows in one call. The adapters are views into the rows of a bank
(`bora_sweep.model.layout.Layout`).

Shapes: B rows (or 1, an adapter that all rows share), T tokens, I in, O out.
"""

from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from bora_sweep.config import LoraConfig
from bora_sweep.model.dora import Dora
from bora_sweep.model.lora import LowRank, Site
from bora_sweep.model.mora import Mora


class Variant(Protocol):
    """One kind of adapter: its shapes, its initial values and its effect."""

    full_precision: ClassVar[bool]
    """True: `parts` come in the bank's precision. False: they come in the precision of the base."""

    def shapes(self, site: Site) -> dict[str, tuple[int, ...]]:
        """The shape of each part of an adapter at `site`, by the part's kind, such as "A".

        Raises:
            InputError: This variant cannot adapt the module.
        """
        ...

    def init_(self, parts: dict[str, Tensor], site: Site, module: nn.Module, generator: torch.Generator) -> None:
        """Write initial values, which leave the module's output unchanged, into one adapter's zeros in place.

        Args:
            parts: Tensors of zeros, in the shapes of `shapes`.
            site: The adapted module's name and sizes.
            module: The adapted module, with its weight.
            generator: Source of random initial values.

        Raises:
            InputError: This variant cannot adapt the module.
        """
        ...

    def apply(self, output: Tensor, x: Tensor, parts: dict[str, Tensor], module: nn.Module) -> Tensor:
        """The adapted module's output.

        Args:
            output: W x + b, the module's own output, of shape (B, T, O) or (B*T, O). It may be overwritten.
            x: The module's input, of shape (B, T, I) or (B*T, I): rows are outermost either way.
            parts: The adapter of each of the B rows. With B = 1 the adapter acts on all tokens.
            module: The adapted module.

        Returns:
            A tensor like `output`.
        """
        ...


def make_variant(config: LoraConfig) -> Variant:
    """The variant that `config.variant` names, with its rank and scale."""
    match config.variant:
        case "dora":
            return Dora(config.rank, config.scale)
        case "mora":
            return Mora(config.rank)
        case _:
            return LowRank(config.rank, config.scale)
