"""Where the matrices of one adapter lie among its P parameters.

Shapes: B rows, P parameters of one adapter: all its matrices, flattened and laid end to end.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bora_sweep.config import LoraConfig
from bora_sweep.model.lora import Site, Variant, make_variant
from bora_sweep.model.sites import find_sites


@dataclass(frozen=True)
class Part:
    """One matrix (or vector) of an adapter: where it acts, which kind it is ("A", "B", "magnitude", "M"), its shape."""

    site: Site
    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Where each part lies in an adapter's P parameters, and how they act."""

    sites: tuple[Site, ...]
    parts: tuple[Part, ...]
    variant: Variant

    @property
    def sizes(self) -> list[int]:
        """Parameters of each part, in turn."""
        return [math.prod(part.shape) for part in self.parts]

    @property
    def num_parameters(self) -> int:
        """P."""
        return sum(self.sizes)

    def split(self, theta_BP: Tensor) -> dict[str, dict[str, Tensor]]:
        """Views of each site's parts by its name and their kind, such as A_BRI and B_BOR; theta_P gives A_RI, B_OR."""
        views: dict[str, dict[str, Tensor]] = {site.name: {} for site in self.sites}
        for part, flat in zip(self.parts, theta_BP.split(self.sizes, dim=-1), strict=True):
            views[part.site.name][part.kind] = flat.unflatten(-1, part.shape)
        return views

    @torch.no_grad()
    def initial(self, base: nn.Module, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """theta_P at the start, which leaves `base` unchanged.

        Raises:
            InputError: A module whose weights the variant cannot take.
        """
        generator = torch.Generator().manual_seed(seed)
        theta_P = torch.zeros(self.num_parameters, dtype=dtype)
        views = self.split(theta_P)
        for site in self.sites:
            self.variant.start_(views[site.name], site, base.get_submodule(site.name), generator)
        return theta_P

    def group_of(self, by: Literal["matrix", "layer"]) -> tuple[list[str], Tensor]:
        """Names of the groups of parameters, and the group of each, index_P.

        `matrix`: by the kind of part, such as "A" and "B". `layer`: by the transformer layer, "layer_0", the first
        number in a module's path; a module outside of all layers is a group of its own, under its path.
        """
        of_part = [part.kind if by == "matrix" else _layer(part.site.name) for part in self.parts]
        names = list(dict.fromkeys(of_part))
        index = torch.tensor([names.index(name) for name in of_part])
        return names, index.repeat_interleave(torch.tensor(self.sizes))


def _layer(name: str) -> str:
    number = next((piece for piece in name.split(".") if piece.isdecimal()), None)
    return name if number is None else f"layer_{number}"


def make_layout(base: nn.Module, config: LoraConfig) -> Layout:
    """Where and how `config` adapts `base`, whose weights need not be there yet.

    Raises:
        InputError: As in `find_sites`, or a module that the variant cannot take.
    """
    return layout_of_sites(find_sites(base, config), config)


def layout_of_sites(sites: Sequence[Site], config: LoraConfig) -> Layout:
    """Adapters of `config` at sites that are known; errors as in `make_layout`."""
    variant = make_variant(config)
    parts = tuple(Part(site, kind, shape) for site in sites for kind, shape in variant.shapes(site).items())
    return Layout(tuple(sites), parts, variant)
