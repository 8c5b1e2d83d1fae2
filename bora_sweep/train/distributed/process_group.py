"""The processes that make one fit together, and what they tell each other.

Each runs the same code on the same corpus in the same order. The first alone reads and writes the run's folder, and
tells the others what it read. A process that is on its own is the first of one, and has nobody to tell.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

from bora_sweep.errors import InputError, one_line
from bora_sweep.process import Interrupted

T = TypeVar("T")
SHARED = (torch.OutOfMemoryError, Interrupted)
"""What one process meets and all act upon, in the order in which they do."""

LONGEST = timedelta(days=1)
"""Of a wait for the first process, which may be writing, or estimating tau; one that died is noticed at once."""


MEETING = timedelta(minutes=5)
"""Within which all that were started are to be there."""

GRACE = timedelta(seconds=10)
"""For which a process that has failed, and the first at its end, wait for the others."""

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher tells the processes that it starts."""


def launcher_rank() -> tuple[int, int]:
    """The rank and the number of processes that a launcher has put into the environment; (0, 1) where none has.

    Raises:
        InputError: They are no numbers that can be.
    """
    rank, count = os.environ.get("RANK"), os.environ.get("WORLD_SIZE", "1")
    if rank is None:
        return 0, 1
    if not (rank.isdecimal() and count.isdecimal() and int(rank) < int(count)):
        raise InputError(f"{launcher_variables()}: no rank of so many processes; {_UNSET}")
    return int(rank), int(count)


_UNSET = "a launcher sets them, and a shell may have kept them: `unset " + " ".join(LAUNCHER) + "` without one"


def launcher_variables() -> str:
    """The launcher's variables as they are."""
    return " ".join(f"{name}={os.environ[name]}" for name in LAUNCHER if name in os.environ)


def check_launcher(asked: int) -> None:
    """Refuse a number of processes in the environment that nobody asked for, before it is waited for the others.

    Args:
        asked: `ray.workers_per_trial`.

    Raises:
        InputError: Another number was asked for.
    """
    count = launcher_rank()[1]
    if asked != count > 1:
        raise InputError(
            f"{launcher_variables()} in the environment: this would be one of {count} processes of a fit for which "
            f"ray.workers_per_trial={asked}; {_UNSET}, or set ray.workers_per_trial={count}"
        )


@contextmanager
def joined_processes() -> Iterator[None]:
    """Within, the processes that a launcher has started for a fit are one; then they part, in order.

    The first has written all that it will, and ends last: a launcher kills all once one has ended badly, and one that
    ends while another still talks to it may do so.

    Raises:
        InputError: Not all came.
    """
    rank, count = launcher_rank()
    if count == 1 or dist.is_initialized():
        yield
        return
    _refuse_foreign_sharding()
    try:
        store, _, _ = next(rendezvous("env://", timeout=MEETING))
        store.set_timeout(LONGEST)
        init_from_store(store, rank, count)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"{launcher_variables()} in the environment: {count} processes did not meet "
            f"({one_line(error, limit=200)}); {_UNSET}, or start them all as in docs/parallel.md"
        ) from None
    patience = GRACE
    try:
        yield
        patience = LONGEST
    except Interrupted:  # of which all know, and the first writes a checkpoint
        patience = LONGEST
        raise
    finally:
        _part(store, patience)


def _part(store: Store, patience: timedelta) -> None:
    others = [f"bora_sweep/left/{rank}" for rank in range(1, count())]
    with suppress(RuntimeError):  # one that has died leaves no word
        if is_rank_zero():
            store.set("bora_sweep/ended", "")
            store.wait(others, GRACE)
        else:
            store.wait(["bora_sweep/ended"], patience)
            store.set(others[rank() - 1], "")
    dist.destroy_process_group()


def _refuse_foreign_sharding() -> None:
    """Refuse what `accelerate launch` may be set to and Transformers would obey: weights in the first process alone."""
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"):
        if os.environ.get(name, "false").lower() == "true":
            raise InputError(
                f"{name}={os.environ[name]} in the environment: each process of a fit holds the whole base model; "
                "launch with --multi_gpu, or with a configuration file of Accelerate that has no such plugin"
            )


def init_from_store(store: Store, rank: int, count: int) -> None:
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


def is_rank_zero() -> bool:
    """Whether it is this process that reads and writes."""
    return rank() == 0


def sum_(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place, the same to the bit in each."""
    if count() > 1:
        dist.all_reduce(tensor)
    return tensor


def from_rank_zero(work: Callable[[], T]) -> T:
    """What `work` returns in the first process, given to all; what it raises there is raised in all.

    Until it is done the others wait.
    """
    if count() == 1:
        return work()
    message: list = [None, None]
    if is_rank_zero():
        try:
            message[0] = work()
        except Exception as error:
            message[1] = error
    dist.broadcast_object_list(message, src=0)
    if message[1] is not None:
        raise message[1]
    return message[0]


def sync_errors(work: Callable[[], T]) -> T:
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
