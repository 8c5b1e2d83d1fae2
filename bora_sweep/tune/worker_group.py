"""The processes of a trial beside its first, where one fit spans several.

A trial reserves one placement group with a bundle of resources for each process. Tune starts the trial's first process
in the first bundle, and that process starts an actor in each other bundle. All join one process group and do the same
work. The actors stay for the next trials of the first process. It owns them: however it ends, Ray ends them too.
"""

import os
import socket
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import psutil
import ray
from ray import tune
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from bora_sweep.errors import one_line
from bora_sweep.train.distributed import process_group

T = TypeVar("T")
GRACE_SECONDS = 10.0
"""For the first process to notice by itself that another is lost; it cannot while it waits for a GPU."""


class LostProcessError(RuntimeError):
    """A process of the fit died before the fit ended."""


def placement_group(resources: dict[str, float], num_processes: int) -> tune.PlacementGroupFactory:
    """What a trial of `num_processes` reserves: a bundle for each, on as few nodes as possible.

    Args:
        resources: Of one process, by Ray's names: `CPU`, `GPU`.
        num_processes: Of the trial.
    """
    return tune.PlacementGroupFactory([resources] * num_processes, strategy="PACK")


def run_in_group(
    num_processes: int,
    *,
    first: Callable[[], T],
    others: Callable[..., Any],
    arguments: Sequence[Any],
    on_lost: Callable[[str], None],
) -> T:
    """Run `first()` in this process and `others(*arguments)` in each other process of the trial.

    Args:
        num_processes: Of the trial, this one included.
        first: The work of this process.
        others: The work of the other processes, a function of a module.
        arguments: Of `others`.
        on_lost: Called with the reason before this process gives up because another is lost.

    Returns:
        What `first` returns.

    Raises:
        LostProcessError: Another process died.
    """
    if num_processes == 1:
        return first()
    return _worker_group(num_processes).run(first, others, arguments, on_lost)


@lru_cache(maxsize=1)
def _worker_group(num_processes: int) -> "WorkerGroup":
    """The group of this process; all its trials have the same number of processes."""
    return WorkerGroup(num_processes)


class GroupMember:
    """The actor of one process."""

    def address(self) -> str:
        return f"process {os.getpid()} on {ray.util.get_node_ip_address()}"

    def join(self, host: str, port: int, rank: int, num_processes: int) -> None:
        _use_interface_of(ray.util.get_node_ip_address())
        process_group.init_from_store(TCPStore(host, port, num_processes, is_master=False), rank, num_processes)

    def call(self, work: Callable[..., Any], *arguments: Any) -> None:
        work(*arguments)


class WorkerGroup:
    """A process group of this process, as rank 0, and an actor in each other bundle of its trial."""

    def __init__(self, num_processes: int) -> None:
        group = ray.util.get_current_placement_group()
        assert group is not None
        self.members = []
        for rank, bundle in enumerate(group.bundle_specs[1:], start=1):
            place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
            resources = {"num_cpus": bundle.get("CPU", 0), "num_gpus": bundle.get("GPU", 0)}
            self.members.append(ray.remote(GroupMember).options(scheduling_strategy=place, **resources).remote())
        self.addresses = ray.get([member.address.remote() for member in self.members])
        host = ray.util.get_node_ip_address()
        listener = socket.create_server((host, 0))  # the store itself would listen at every address
        port = listener.getsockname()[1]
        self.store = TCPStore(
            host, port, num_processes, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        joined = [member.join.remote(host, port, rank, num_processes) for rank, member in enumerate(self.members, 1)]
        _use_interface_of(host)
        process_group.init_from_store(self.store, 0, num_processes)
        ray.get(joined)

    def run(
        self,
        first: Callable[[], T],
        others: Callable[..., Any],
        arguments: Sequence[Any],
        on_lost: Callable[[str], None],
    ) -> T:
        stored = [ray.put(argument) for argument in arguments]
        calls = [member.call.remote(others, *stored) for member in self.members]
        ended = threading.Event()

        def watch() -> None:
            while not ended.is_set():
                lost = self._lost(calls, timeout=1.0)
                if lost is not None and not ended.wait(GRACE_SECONDS):
                    on_lost(lost[0])
                    os._exit(1)

        thread = threading.Thread(target=watch, name="bora-sweep worker group", daemon=True)
        thread.start()
        try:
            result = first()
            ray.get(calls)
        except RuntimeError as error:
            lost = self._lost(calls, timeout=GRACE_SECONDS / 2)
            if lost is None or not isinstance(lost[1], RayActorError):
                raise
            on_lost(lost[0])
            raise LostProcessError(lost[0]) from error
        finally:
            ended.set()
            thread.join()
        return result

    def _lost(self, calls: list, timeout: float) -> tuple[str, Exception] | None:
        """Which process failed, and how; None where none has within `timeout` seconds."""
        for call in ray.wait(calls, num_returns=len(calls), timeout=timeout)[0]:
            try:
                ray.get(call)
            except Exception as error:
                address = self.addresses[calls.index(call)]
                how = f"failed: {one_line(error.cause)}" if isinstance(error, RayTaskError) else "died"
                return f"{address}, one of {len(calls) + 1} processes of the fit, {how}", error
        return None


def _use_interface_of(address: str) -> None:
    """Have Gloo and NCCL use the network interface by which Ray's nodes see each other, not one of their own choice."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
