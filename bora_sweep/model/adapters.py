"""Adapters for many tasks in one forward pass, Eq. 3: each row of a batch brings its own.

Shapes: B rows (or 1, an adapter that all rows share), T tokens, V vocabulary, P parameters of one adapter: all its
matrices, flattened and laid end to end, so that an adapter is one row of one matrix and the prior, the optimiser and
the files see a bank of them as a single tensor.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bora_sweep.config import LoraConfig
from bora_sweep.model.probe import made_up_tokens, refuse_unsound
from bora_sweep.model.sites import find_sites
from bora_sweep.model.variants import Site, Variant, make_variant

HEAD_ROWS, HEAD_TOKENS = 6, 33
"""Of the batch by which a head is told from more than a head."""


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
    return lay_out(find_sites(base, config), config)


def lay_out(sites: Sequence[Site], config: LoraConfig) -> Layout:
    """Adapters of `config` at sites that are known; errors as in `make_layout`."""
    variant = make_variant(config)
    parts = tuple(Part(site, kind, shape) for site in sites for kind, shape in variant.shapes(site).items())
    return Layout(tuple(sites), parts, variant)


class AdaptedModel(nn.Module):
    """A frozen causal language model that takes each row's adapter as an argument.

    The base itself is left as it is but for a forward hook on each site, which acts within this module's own `forward`
    and `attached` alone; `detach` takes the hooks off again. The base stays in evaluation mode: its own dropout would
    make likelihoods depend on chance. With `compiled` it runs by torch.compile, whose graphs are kept by shapes alone
    and serve every later model over the same base.

    Raises:
        InputError: The base is not what that takes (`bora_sweep.model.probe`).
    """

    def __init__(self, base: PreTrainedModel, layout: Layout, *, compiled: bool = False) -> None:
        super().__init__()
        self.base = base.eval().requires_grad_(False)
        self.layout = layout
        self._adapters: dict[str, dict[str, Tensor]] = {}
        self._hooks = [base.get_submodule(site.name).register_forward_hook(self._hook(site)) for site in layout.sites]
        try:
            refuse_unsound(self)
        except BaseException:
            self.detach()
            raise
        self.head = _linear_head(base, layout)
        if compiled:
            self._run = torch.compile(self._run)

    def _hook(self, site: Site):
        def adapt(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            parts = self._adapters.get(site.name)
            if parts is None:  # the base is run by someone else
                return output
            return self.layout.variant.apply(output, inputs[0], parts, module)

        return adapt

    def forward(self, tokens_BT: Tensor, theta_BP: Tensor, own_BT: Tensor | None = None) -> Tensor:
        """logits_BTV of the next token at each position, each row under its own adapter.

        Rows are padded on the right, if at all: a causal model's earlier positions never see what follows, so no
        attention mask is needed but where positions of padding are looked at, `own_BT`, 1 where they are not padding.
        theta_BP has as many rows as the tokens, or one.
        """
        return self._run(self.base, tokens_BT, theta_BP, own_BT).logits

    def hidden(self, tokens_BT: Tensor, theta_BP: Tensor, own_BT: Tensor | None = None) -> Tensor:
        """hidden_BTH, of which `head` makes the logits; arguments as in `forward`."""
        return self._run(self.base.base_model, tokens_BT, theta_BP, own_BT).last_hidden_state

    def _run(self, module: nn.Module, tokens_BT: Tensor, theta_BP: Tensor, own_BT: Tensor | None) -> Any:
        self._attach(theta_BP)
        mask = {} if own_BT is None else {"attention_mask": own_BT}
        try:
            return module(input_ids=tokens_BT, use_cache=False, **mask)
        finally:
            self._adapters = {}

    @contextmanager
    def attached(self, theta_P: Tensor) -> Iterator[None]:
        """Within, the base has this adapter, whoever runs it."""
        self._attach(theta_P[None])
        with self.holding(self._adapters):
            yield

    @contextmanager
    def holding(self, parts_of: dict[str, dict[str, Tensor]]) -> Iterator[None]:
        """Within, the base has these adapters, a row its own, at these sites alone; as `Layout.split` gives them."""
        self._adapters = parts_of
        try:
            yield
        finally:
            self._adapters = {}

    def _attach(self, theta_BP: Tensor) -> None:
        if not self.layout.variant.full_precision:
            theta_BP = theta_BP.to(self.base.dtype)
        self._adapters = self.layout.split(theta_BP)

    def detach(self) -> None:
        """Take the hooks off the base, which is then the model that was given."""
        for hook in self._hooks:
            hook.remove()


@torch.no_grad()
def _linear_head(base: PreTrainedModel, layout: Layout) -> nn.Linear | None:
    """What makes logits of the last hidden state, where that is all that does; None in a base that caps or scales them.

    Found by trying: no attribute tells.
    """
    head = base.get_output_embeddings()
    if not isinstance(head, nn.Linear) or any(base.get_submodule(site.name) is head for site in layout.sites):
        return None
    positions = getattr(base.config, "max_position_embeddings", None)
    length = min(HEAD_TOKENS, positions // 2) if isinstance(positions, int) and positions > 1 else HEAD_TOKENS
    tokens_BT = made_up_tokens(base, HEAD_ROWS, length)
    hidden = getattr(base.base_model(input_ids=tokens_BT, use_cache=False), "last_hidden_state", None)
    if hidden is None or hidden.shape[-1] != head.in_features or hidden.dtype != head.weight.dtype:
        return None
    for scale in (1, 64):  # larger logits than these tokens have would show a cap
        hook = head.register_forward_hook(lambda _, __, logits, scale=scale: logits * scale)
        try:
            if not torch.equal(head(hidden), base(input_ids=tokens_BT, use_cache=False).logits):
                return None
        finally:
            hook.remove()
    return head
