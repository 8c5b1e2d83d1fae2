"""The layout of an adapter: where each of its matrices lies among its P parameters.

An adapter is one row of one matrix, so that prior, optimiser and files see a bank of adapters as a single tensor.

Shapes: B rows, P parameters of one adapter: all its matrices, flattened and laid end to end.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bora_sweep.config import LoraConfig
from bora_sweep.model.lora import Site
from bora_sweep.model.sites import find_sites
from bora_sweep.model.variants import Variant, make_variant


@dataclass(frozen=True)
class Part:
    """One matrix or vector of an adapter: where it acts, its kind ("A", "B", "magnitude" or "M") and its shape."""

    site: Site
    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """The sites, parts and variant of an adapter; parts lie end to end in its P parameters."""

    sites: tuple[Site, ...]
    parts: tuple[Part, ...]
    variant: Variant

    @property
    def sizes(self) -> list[int]:
        """The number of parameters of each part, in order."""
        return [math.prod(part.shape) for part in self.parts]

    @property
    def num_parameters(self) -> int:
        """P."""
        return sum(self.sizes)

    def split(self, theta_BP: Tensor) -> dict[str, dict[str, Tensor]]:
        """Views of the parts by site and kind, such as A_BRI and B_BOR; theta_P gives A_RI and B_OR."""
        views: dict[str, dict[str, Tensor]] = {site.name: {} for site in self.sites}
        for part, flat in zip(self.parts, theta_BP.split(self.sizes, dim=-1), strict=True):
            views[part.site.name][part.kind] = flat.unflatten(-1, part.shape)
        return views

    @torch.no_grad()
    def initial(self, base: nn.Module, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """The initial adapter, theta_P, with which `base` computes as without an adapter.

        Args:
            base: The base model, with its weights.
            seed: Fixes the random part.
            dtype: Of the result.

        Raises:
            InputError: The variant cannot adapt a module with such weights.
        """
        generator = torch.Generator().manual_seed(seed)
        theta_P = torch.zeros(self.num_parameters, dtype=dtype)
        views = self.split(theta_P)
        for site in self.sites:
            self.variant.init_(views[site.name], site, base.get_submodule(site.name), generator)
        return theta_P

    def parameter_groups(self, by: Literal["matrix", "layer"]) -> tuple[list[str], Tensor]:
        """The names of the groups of parameters, and the index of each parameter's group, index_P.

        `matrix`: one group for each kind of part, such as "A" and "B". `layer`: one for each transformer layer, such as
        "layer_0", by the first number in a module's path; a module outside all layers is a group, under its path.
        """
        group_of_part = [part.kind if by == "matrix" else _layer(part.site.name) for part in self.parts]
        names = list(dict.fromkeys(group_of_part))
        index = torch.tensor([names.index(name) for name in group_of_part])
        return names, index.repeat_interleave(torch.tensor(self.sizes))


def _layer(name: str) -> str:
    number = next((piece for piece in name.split(".") if piece.isdecimal()), None)
    return name if number is None else f"layer_{number}"


def make_layout(base: nn.Module, config: LoraConfig) -> Layout:
    """The layout of the adapters that `config` asks for on `base`, whose weights may be absent.

    Raises:
        InputError: As in `find_sites`, or the variant cannot adapt a module.
    """
    return layout_of_sites(find_sites(base, config), config)


def layout_of_sites(sites: Sequence[Site], config: LoraConfig) -> Layout:
    """The layout of the adapters of `config` at known sites; errors as in `make_layout`."""
    variant = make_variant(config)
    parts = tuple(Part(site, kind, shape) for site in sites for kind, shape in variant.shapes(site).items())
    return Layout(tuple(sites), parts, variant)
