"""Adapters for many tasks in one forward pass, Eq. 3: each row of a batch brings its own.

Shapes: B rows (or 1, an adapter that all rows share), T tokens, V vocabulary, P parameters of one adapter: all its
matrices, flattened and laid end to end, so that an adapter is one row of one matrix and the prior, the optimiser and
the files see a bank of them as a single tensor.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bora_sweep.model.layout import Layout
from bora_sweep.model.lora import Site
from bora_sweep.model.probe import made_up_tokens, refuse_unsound

HEAD_ROWS, HEAD_TOKENS = 6, 33
"""Of the batch by which a head is told from more than a head."""


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
