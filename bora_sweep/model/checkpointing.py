"""Gradient checkpointing of the base's blocks, whose rows have adapters of their own.

A block keeps only its input for the backward pass, which runs the block again for the rest. By then the forward pass
has ended and its adapters are gone; without them the gradients would be those of the bare base. So each pass of a block
brings its adapters along. (Transformers' own checkpointing acts in training mode only, with the base's dropout.)
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from bora_sweep.errors import InputError
from bora_sweep.model.layout import Layout

Again = Callable[[], AbstractContextManager[None]]
"""A context in which the pass that is under way can be repeated."""


def find_blocks(base: PreTrainedModel, layout: Layout) -> list[nn.Module]:
    """The blocks of the base: all entries of each outermost list of modules that has an adapted module in it.

    Raises:
        InputError: There is no such list.
    """
    lists: dict[str, nn.Module] = {}
    for site in layout.sites:
        path = site.name.split(".")
        parents = [".".join(path[:place]) for place, piece in enumerate(path) if piece.isdecimal()]
        outermost = next((name for name in parents if isinstance(base.get_submodule(name), nn.ModuleList)), None)
        if outermost is not None:
            lists[outermost] = base.get_submodule(outermost)
    if not lists:
        raise InputError(
            f"train.gradient_checkpointing=true: the adapted modules of a {type(base).__name__}, such as "
            f"{layout.sites[0].name}, lie in no list of blocks whose inputs could be kept; drop the setting"
        )
    return [block for blocks in lists.values() for block in blocks.children()]


class BlockCheckpoints:
    """Checkpoints of blocks, from the start until `remove`.

    Args:
        blocks: The blocks.
        again: Called as a block begins; gives the context in which its pass can be repeated, or None where the base
            runs without adapters.
    """

    def __init__(self, blocks: list[nn.Module], again: Callable[[], Again | None]) -> None:
        self._again = again
        self._before = [(block, vars(block).get("forward")) for block in blocks]
        for block in blocks:
            block.forward = self._checkpointed(block.forward)

    def _checkpointed(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*inputs: Any, **named: Any) -> Any:
            again = self._again() if torch.is_grad_enabled() else None
            if again is None:
                return run(*inputs, **named)
            if torch.compiler.is_compiling():  # the graph of the second pass holds the adapters
                return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False, **named)
            return checkpoint(
                run, *inputs, use_reentrant=False, preserve_rng_state=False,
                context_fn=lambda: (nullcontext(), again()), **named,
            )  # fmt: skip

        return forward

    def remove(self) -> None:
        """Give the blocks back as they were."""
        for block, own in self._before:
            del block.forward
            if own is not None:
                block.forward = own
        self._before = []
