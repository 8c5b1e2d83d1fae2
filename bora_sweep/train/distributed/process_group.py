"""The process group of a fit: ranks that run the same code on the same corpus in the same order.

Only rank 0 reads and writes the run's folder; it broadcasts what it reads. A process alone is rank 0 of 1.
"""

import os
from collections.abc import Callable, Iterator, Sequence
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
"""Errors of one rank on which all ranks act, in this order of precedence."""

LONGEST = timedelta(days=1)
"""The longest wait for rank 0, which may be writing or estimating tau; a process that died is noticed at once."""
MEETING = timedelta(minutes=5)
"""The longest wait for all ranks to start."""
GRACE = timedelta(seconds=10)
"""How long a rank that failed, and rank 0 at its end, wait for the others."""
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""The variables that a launcher, such as torchrun, sets for the processes that it starts."""


def launcher_rank() -> tuple[int, int]:
    """The rank and the number of processes that a launcher has set in the environment; (0, 1) without one.

    Raises:
        InputError: The values are not a rank and a count.
    """
    rank, count = os.environ.get("RANK"), os.environ.get("WORLD_SIZE", "1")
    if rank is None:
        return 0, 1
    if not (rank.isdecimal() and count.isdecimal() and int(rank) < int(count)):
        raise InputError(f"{launcher_variables()}: not a rank of that many processes; {_UNSET}")
    return int(rank), int(count)


_UNSET = "a launcher sets them, and a shell may have kept them: `unset " + " ".join(LAUNCHER) + "` without one"


def launcher_variables() -> str:
    """The launcher's variables as `NAME=value`, for a message."""
    return " ".join(f"{name}={os.environ[name]}" for name in LAUNCHER if name in os.environ)


def check_launcher(asked: int) -> None:
    """Refuse a number of processes that the configuration does not ask for, before waiting for them.

    Args:
        asked: `ray.workers_per_trial`.

    Raises:
        InputError: The numbers differ.
    """
    count = launcher_rank()[1]
    if asked != count > 1:
        raise InputError(
            f"{launcher_variables()} in the environment: this would be one of {count} processes of a fit for which "
            f"ray.workers_per_trial={asked}; {_UNSET}, or set ray.workers_per_trial={count}"
        )


@contextmanager
def joined_processes() -> Iterator[None]:
    """Within, the processes that a launcher has started form one process group.

    Rank 0 leaves last: a launcher kills all processes once one fails, and a rank that leaves while another still
    communicates with it makes that one fail.

    Raises:
        InputError: Not all processes joined in time.
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
    except Interrupted:  # all ranks were told, and rank 0 writes a checkpoint
        patience = LONGEST
        raise
    finally:
        _part(store, patience)


def _part(store: Store, patience: timedelta) -> None:
    others = [f"bora_sweep/left/{rank}" for rank in range(1, count())]
    with suppress(RuntimeError):  # a process that died sets no key
        if is_rank_zero():
            store.set("bora_sweep/ended", "")
            store.wait(others, GRACE)
        else:
            store.wait(["bora_sweep/ended"], patience)
            store.set(others[rank() - 1], "")
    dist.destroy_process_group()


def _refuse_foreign_sharding() -> None:
    """Refuse sharding plugins of `accelerate launch`: Transformers would then load weights on rank 0 alone."""
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"):
        if os.environ.get(name, "false").lower() == "true":
            raise InputError(
                f"{name}={os.environ[name]} in the environment: each process of a fit holds the whole base model; "
                "launch with --multi_gpu, or with a configuration file of Accelerate that has no such plugin"
            )


def init_from_store(store: Store, rank: int, count: int) -> None:
    """Initialise torch.distributed by a key-value store that all ranks reach.

    Args:
        store: Of the processes of one fit.
        rank: Of this process.
        count: Of processes.
    """
    dist.init_process_group(_backends(), store=store, rank=rank, world_size=count, timeout=LONGEST)


def _backends() -> str:
    """Gloo for tensors on the host, NCCL for those on a GPU."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def count() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The rank of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_rank_zero() -> bool:
    """Whether this process reads and writes the run's folder."""
    return rank() == 0


def sum_(tensor: Tensor) -> Tensor:
    """All-reduce by sum, in place; the same bits on every rank."""
    if count() > 1:
        dist.all_reduce(tensor)
    return tensor


def from_rank_zero(work: Callable[[], T]) -> T:
    """Run `work` on rank 0 and broadcast its result, or the error that it raises, to all ranks."""
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


def any_of(flags: Sequence[bool]) -> list[bool]:
    """For each flag, whether it is set on any rank; all ranks have as many."""
    if count() == 1:
        return list(flags)
    return (sum_(torch.tensor(flags, dtype=torch.int32)) > 0).tolist()


def from_all(own: T) -> list[T]:
    """What each rank has, on all ranks, in their order."""
    if count() == 1:
        return [own]
    parts: list = [None] * count()
    dist.all_gather_object(parts, own)
    return parts


def sync_errors(work: Callable[[], T]) -> T:
    """Run `work` on each rank; if one of them runs out of memory, or is asked to stop, all ranks raise that."""
    if count() == 1:
        return work()
    result, count_of = None, torch.zeros(len(SHARED))
    try:
        result = work()
    except SHARED as error:
        count_of[[isinstance(error, kind) for kind in SHARED]] = 1
    for kind, number in zip(SHARED, sum_(count_of).tolist(), strict=True):
        if number:
            raise kind(f"in {number:g} of {count()} processes")
    return result  # type: ignore[return-value]
