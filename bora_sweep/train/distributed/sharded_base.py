"""The frozen base model sharded over the processes of a fit, `train.shard_base`, by FSDP2.

Each process holds a part of every block's weights. Before a block runs, forward or backward, all processes gather its
weights; they drop them afterwards. What is outside the blocks (embeddings, final norm, head) is whole on each process.

All processes must therefore make the same passes: `bora_sweep.train.distributed.equal_passes`.
"""

import warnings
from collections.abc import Iterable
from itertools import takewhile
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel

from bora_sweep.errors import InputError
from bora_sweep.model.placement import placed

_root_of: WeakKeyDictionary[PreTrainedModel, nn.Module] = WeakKeyDictionary()


def place_base(base: PreTrainedModel, device: torch.device, *, shard: bool) -> PreTrainedModel:
    """The base on the device of a fit: this process's part of it, or all of it.

    A base that is sharded stays so, for the next fit of the worker.

    Args:
        base: The base model; it is changed in place.
        device: Of this process.
        shard: `train.shard_base`.

    Raises:
        InputError: The base is sharded and is to be whole, or it cannot be sharded.
    """
    if base in _root_of:
        if not shard:
            raise InputError(
                "train.shard_base=false: an earlier fit has sharded this base model over its processes; load it anew, "
                "or set train.shard_base=true"
            )
        return base
    if not shard:
        return placed(base, device)
    _shard(base.requires_grad_(False), device)
    return base.to(device)  # type: ignore[arg-type]


def root_of(base: PreTrainedModel) -> nn.Module:
    """The module whose call is a pass of a sharded base: the innermost that holds all blocks."""
    return _root_of[base]


def _shard(base: PreTrainedModel, device: torch.device) -> None:
    if not hasattr(FSDPModule, "reset_iter_state"):
        raise InputError(
            f"train.shard_base=true: torch {torch.__version__} cannot go on after a sharded base failed in a forward "
            "pass, as some do where they are checked; install torch 2.13"
        )
    blocks = blocks_of(base)
    _refuse_weights(base, blocks)
    root = base.get_submodule(_holder(blocks))
    group = dist.group.WORLD
    assert group is not None  # a fit of one process shards nothing
    mesh = DeviceMesh.from_group(group, device.type)
    sharded = {weight for block in blocks.values() for weight in block.parameters()}
    for block in blocks.values():
        block.register_forward_hook(_without_views)
        fully_shard(block, mesh=mesh, reshard_after_forward=True)  # moves the block to the device first
    fully_shard(root, mesh=mesh, ignored_params={*root.parameters()} - sharded)
    # It is right for a block, whose weights would not be gathered; the root has none.
    warnings.filterwarnings("ignore", rf"FSDP2-wrapped module \({type(root).__name__}\) returned a view")
    _Recovery(root)
    _root_of[base] = root


def blocks_of(base: PreTrainedModel) -> dict[str, nn.Module]:
    """The entries of the model's outermost lists of modules, by their paths.

    Raises:
        InputError: There are none.
    """
    lists = [name for name, module in base.named_modules() if isinstance(module, nn.ModuleList)]
    outermost = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    blocks = {
        f"{name}.{place}": block
        for name in outermost
        for place, block in base.get_submodule(name).named_children()
        if next(block.parameters(), None) is not None
    }
    if not blocks:
        raise InputError(
            f"train.shard_base=true: {type(base).__name__} has no list of blocks to shard; set train.shard_base=false"
        )
    return blocks


def _holder(blocks: Iterable[str]) -> str:
    """The path of the innermost module that holds all lists of these blocks."""
    holders = [path.split(".")[:-2] for path in blocks]
    levels = takewhile(lambda pieces: len(set(pieces)) == 1, zip(*holders, strict=False))
    return ".".join(pieces[0] for pieces in levels)


def _refuse_weights(base: PreTrainedModel, blocks: dict[str, nn.Module]) -> None:
    """Refuse weights that FSDP cannot shard by block: those of several blocks, and packed ones."""
    owner_of: dict[nn.Parameter, str] = {}
    for name, weight in base.named_parameters(remove_duplicate=False):
        owner = next((path for path in blocks if name.startswith(f"{path}.")), "")
        if owner and not weight.is_floating_point():
            raise InputError(
                f"train.shard_base=true: {name} keeps its weights packed, as {weight.dtype}, which cannot be sharded; "
                "give a base that is not quantised, or set train.shard_base=false"
            )
        if owner_of.setdefault(weight, owner) != owner:
            raise InputError(
                f"train.shard_base=true: {name} is also a weight of {owner_of[weight] or 'a module outside the blocks'}"
                ", and blocks are sharded one by one; set train.shard_base=false"
            )


def _without_views(_: nn.Module, __: Any, output: Any) -> Any:
    """A block's output without views: an operation in place on a view would lose FSDP's hook of the backward pass."""

    def own(part: Tensor) -> Tensor:
        return part.clone() if part.requires_grad and part._base is not None else part

    return tree_map_only(Tensor, own, output)


class _Recovery:
    """Resets FSDP where the pass before this one has failed: checks of a base run it where it may fail."""

    def __init__(self, root: nn.Module) -> None:
        self.is_open = False
        root.register_forward_pre_hook(self._begin, prepend=True)
        root.register_forward_hook(self._end)

    def _begin(self, root: Any, _: Any) -> None:
        if self.is_open:
            root.reset_iter_state()
        self.is_open = True

    def _end(self, *_: Any) -> None:
        self.is_open = False
