"""A base model that runs each row of a batch with its own adapter, in one forward pass.

Shapes: B rows (or 1, an adapter that all rows share), T tokens, H hidden, V vocabulary, P parameters of one adapter.
"""

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bora_sweep.model.attention import CAUSAL, attention, has_causal_attention
from bora_sweep.model.base_check import AdapterParts, check_base
from bora_sweep.model.checkpointing import Again, BlockCheckpoints, find_blocks
from bora_sweep.model.layout import Layout
from bora_sweep.model.lora import Site
from bora_sweep.model.trial_logits import made_up_tokens

HEAD_ROWS, HEAD_TOKENS = 6, 33
"""Shape of the batch by which a linear head is recognised."""
RECOMPILE_LIMIT = 64
"""Graphs of one function. Beyond its own limit, 8, torch.compile would run the rest without graphs, and say nothing."""


class AdaptedModel(nn.Module):
    """A frozen causal language model that takes each row's adapter as an argument.

    Each site of the base gets a forward hook, which acts only within `forward`, `last_hidden_state`, `with_adapter`,
    `with_adapters` and `with_parts`; `remove_hooks` restores the base. The base stays in evaluation mode: its own
    dropout would make likelihoods depend on chance. With `compiled` it runs by torch.compile. The graphs depend on
    shapes alone, so they serve every later model over the same base.

    Args:
        base: The base model.
        layout: Its adapters.
        compiled: Whether it runs by torch.compile.
        checkpointed: Whether each block keeps only its input for the backward pass.
        longest: Tokens of the longest row that will come, up to which a lighter attention may replace the base's own
            (`bora_sweep.model.attention`); None: the base keeps its own.

    Raises:
        InputError: The base cannot be run so (`bora_sweep.model.base_check`).
    """

    def __init__(
        self,
        base: PreTrainedModel,
        layout: Layout,
        *,
        compiled: bool = False,
        checkpointed: bool = False,
        longest: int | None = None,
    ) -> None:
        super().__init__()
        self.base = base.eval().requires_grad_(False)
        self.layout = layout
        self._parts: AdapterParts = {}
        self._checkpoints = BlockCheckpoints([], self._again)
        self._hooks = [base.get_submodule(site.name).register_forward_hook(self._hook(site)) for site in layout.sites]
        try:
            check_base(self.base, layout, self.with_parts)
            blocks = find_blocks(base, layout) if checkpointed else []
            is_causal = longest is not None and has_causal_attention(base, longest)
            self.longest_causal = longest if is_causal and longest is not None else 0
            """Tokens of a row without a mask up to which `causal_attention` stands in for the base's own."""
        except BaseException:
            self.remove_hooks()
            raise
        self.head = _linear_head(base, layout)
        self.keeps_logits = self.head is None and _keeps_logits(base)
        """Whether logits that no linear head alone makes can be asked for at some positions."""
        self._checkpoints = BlockCheckpoints(blocks, self._again)
        if compiled:
            limits = torch._dynamo.config.patch(
                recompile_limit=RECOMPILE_LIMIT, fail_on_recompile_limit_hit=True
            )  # here alone: a program may compile functions of its own
            self._run = limits(torch.compile(self._run))

    def _hook(self, site: Site):
        def adapt(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            parts = self._parts.get(site.name)
            if parts is None:  # the base runs without this model
                return output
            parts = {kind: part.to(output.device) for kind, part in parts.items()}  # a spread base has several devices
            return self.layout.variant.apply(output, inputs[0].to(output.device), parts, module)

        return adapt

    def forward(
        self, tokens_BT: Tensor, theta_BP: Tensor, mask_BT: Tensor | None = None, kept_C: Tensor | None = None
    ) -> Tensor:
        """The logits of the next token at each position, each row under its own adapter.

        Args:
            tokens_BT: Token IDs; rows are padded on the right.
            theta_BP: An adapter for each row, or one for all.
            mask_BT: 1 for tokens, 0 for padding. Needed only if the logits at padding are used: in a causal model
                earlier positions do not depend on padding.
            kept_C: Positions whose logits are wanted, where `keeps_logits`; None: all.

        Returns:
            logits_BTV, or logits_BCV at the positions that are kept.
        """
        kept = {} if kept_C is None else {"logits_to_keep": kept_C}
        with self._attention(tokens_BT, mask_BT):
            return self._run(self.base, tokens_BT, theta_BP, mask_BT, **kept).logits

    def last_hidden_state(self, tokens_BT: Tensor, theta_BP: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """The last hidden state, hidden_BTH, from which `head` makes the logits; arguments as in `forward`."""
        with self._attention(tokens_BT, mask_BT):
            return self._run(self.base.base_model, tokens_BT, theta_BP, mask_BT).last_hidden_state

    def _attention(self, tokens_BT: Tensor, mask_BT: Tensor | None) -> AbstractContextManager[None]:
        """The attention of a pass. A candidate or a generated answer may be longer than what was tried."""
        is_tried = mask_BT is None and tokens_BT.shape[1] <= self.longest_causal
        return attention(self.base, CAUSAL) if is_tried else nullcontext()

    def _again(self) -> Again | None:
        """For a pass under way, the context in which a block of it can run again, with the same adapters."""
        if not self._parts:
            return None
        parts, is_causal = self._parts, self.base.config._attn_implementation == CAUSAL

        @contextmanager
        def again() -> Iterator[None]:
            with self.with_parts(parts), attention(self.base, CAUSAL) if is_causal else nullcontext():
                yield

        return again

    def _run(
        self, module: nn.Module, tokens_BT: Tensor, theta_BP: Tensor, mask_BT: Tensor | None, **more: Tensor
    ) -> Any:
        self._parts = self._split(theta_BP)
        mask = {} if mask_BT is None else {"attention_mask": mask_BT}
        try:
            return module(input_ids=tokens_BT, use_cache=False, **mask, **more)
        finally:
            self._parts = {}

    @contextmanager
    def with_adapter(self, theta_P: Tensor) -> Iterator[None]:
        """Within, the base has this adapter in every call, such as `generate`."""
        with self.with_adapters(theta_P[None]):
            yield

    @contextmanager
    def with_adapters(self, theta_BP: Tensor) -> Iterator[None]:
        """Within, the base has these adapters in every call, one for each row, or one for all."""
        with self.with_parts(self._split(theta_BP)):
            yield

    @contextmanager
    def with_parts(self, parts: AdapterParts) -> Iterator[None]:
        """Within, the base has these adapters, one for each row, at these sites only."""
        self._parts = parts
        try:
            yield
        finally:
            self._parts = {}

    def _split(self, theta_BP: Tensor) -> AdapterParts:
        return self.layout.split(theta_BP.to(self.adapter_dtype or theta_BP.dtype))

    @property
    def adapter_dtype(self) -> torch.dtype | None:
        """The type in which adapters reach the base's modules; None: that of the banks."""
        return None if self.layout.variant.full_precision else self.base.dtype

    def remove_hooks(self) -> None:
        """Restore the base model that was given."""
        self._checkpoints.remove()
        for hook in self._hooks:
            hook.remove()


@torch.no_grad()
def _linear_head(base: PreTrainedModel, layout: Layout) -> nn.Linear | None:
    """The linear layer that alone makes logits from the last hidden state; None if the base caps or scales them.

    Found by running the base, because no attribute says so.
    """
    head = base.get_output_embeddings()
    if not isinstance(head, nn.Linear) or any(base.get_submodule(site.name) is head for site in layout.sites):
        return None
    positions = getattr(base.config, "max_position_embeddings", None)
    length = min(HEAD_TOKENS, positions // 2) if isinstance(positions, int) and positions > 1 else HEAD_TOKENS
    tokens_BT = made_up_tokens(base, HEAD_ROWS, length)
    if base.device.type == "meta":
        return head if base.base_model is not base and _logits_are_outputs_of(head, base, tokens_BT) else None
    hidden = getattr(base.base_model(input_ids=tokens_BT, use_cache=False), "last_hidden_state", None)
    if hidden is None or hidden.shape[-1] != head.in_features or hidden.dtype != head.weight.dtype:
        return None
    for scale in (1, 64):  # a cap may show only in logits larger than these tokens have
        hook = head.register_forward_hook(lambda _, __, logits, scale=scale: logits * scale)
        try:
            if not torch.equal(head(hidden).to(base.device), base(input_ids=tokens_BT, use_cache=False).logits):
                return None
        finally:
            hook.remove()
    return head


def _logits_are_outputs_of(head: nn.Linear, base: PreTrainedModel, tokens_BT: Tensor) -> bool:
    """Whether the base returns what its head returned, in the same memory, from hidden states of the head's type."""
    outputs: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if inputs[0].dtype == head.weight.dtype:
            outputs.append(output)

    hook = head.register_forward_hook(note)
    try:
        logits_BTV = base(input_ids=tokens_BT, use_cache=False).logits
    finally:
        hook.remove()
    return any(logits_BTV.untyped_storage()._cdata == output.untyped_storage()._cdata for output in outputs)


@torch.no_grad()
def _keeps_logits(base: PreTrainedModel) -> bool:
    """Whether the base makes the logits of chosen positions alone, and the same ones. Found by running it."""
    if "logits_to_keep" not in inspect.signature(base.forward).parameters:
        return False
    if base.device.type == "meta":
        return True
    tokens_BT, kept_C = made_up_tokens(base, 2, 8), torch.tensor([2, 5, 6], device=base.device)
    logits_BTV = base(input_ids=tokens_BT, use_cache=False).logits
    kept_BCV = base(input_ids=tokens_BT, use_cache=False, logits_to_keep=kept_C).logits
    return kept_BCV.shape[1] == len(kept_C) and torch.allclose(kept_BCV, logits_BTV[:, kept_C], rtol=1e-3, atol=1e-5)
