"""The processes that make one fit together, and what they tell each other.

Each runs the same code on the same corpus in the same order. The first alone reads and writes the run's folder, and
tells the others what it read. A process that is on its own is the first of one, and has nobody to tell.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

from bora_sweep.interrupt import Interrupted

T = TypeVar("T")
SHARED = (torch.OutOfMemoryError, Interrupted)
"""What one process meets and all act upon, in the order in which they do."""

LONGEST = timedelta(days=1)
"""Of a wait for the first process, which may be writing, or estimating tau; one that died is noticed at once."""


def join() -> None:
    """Meet the others, where a launcher has started any: it says so by `RANK`, `WORLD_SIZE` and `MASTER_*`."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group(_backends(), timeout=LONGEST)


def meet(store: Store, rank: int, count: int) -> None:
    """Meet the others by a store that all have at hand."""
    dist.init_process_group(_backends(), store=store, rank=rank, world_size=count, timeout=LONGEST)


def _backends() -> str:
    """Numbers on the host go by Gloo, those on a GPU by NCCL."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The place of this one among them, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether it is this process that reads and writes."""
    return rank() == 0


def sum_(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place, the same to the bit in each."""
    if count() > 1:
        dist.all_reduce(tensor)
    return tensor


def first(work: Callable[[], T]) -> T:
    """What `work` returns in the first process, given to all; what it raises there is raised in all.

    Until it is done the others wait.
    """
    if count() == 1:
        return work()
    told: list = [None, None]
    if is_first():
        try:
            told[0] = work()
        except Exception as error:
            told[1] = error
    dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    return told[0]


def agree(work: Callable[[], T]) -> T:
    """What `work` returns in each; but where one of them runs out of memory, or is asked to stop, all raise that."""
    if count() == 1:
        return work()
    result, met = None, torch.zeros(len(SHARED))
    try:
        result = work()
    except SHARED as error:
        met[[isinstance(error, kind) for kind in SHARED]] = 1
    for kind, number in zip(SHARED, sum_(met).tolist(), strict=True):
        if number:
            raise kind(f"in {number:g} of {count()} processes")
    return result  # type: ignore[return-value]
