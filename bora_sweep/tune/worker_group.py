"""The processes of a trial beside its first, where one fit spans several.

A trial reserves a bundle of resources for each, as one placement group. Tune starts the trial's own process in the
first bundle; that process starts an actor in each of the others. All meet as the processes of one fit and do the same
work. The actors stay for the trials that follow in the same process. It owns them: however it ends, Ray ends them too.
"""

import os
import socket
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import psutil
import ray
from ray import tune
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from bora_sweep.config import RayConfig
from bora_sweep.errors import one_line
from bora_sweep.train.distributed import process_group

T = TypeVar("T")
GRACE = 10.0
"""Seconds in which the first process should notice by itself that another is lost; one that waits for a GPU cannot."""


class LostProcessError(RuntimeError):
    """A process of the fit died before the fit ended."""


def reserved(resources: dict[str, float], count: int) -> tune.PlacementGroupFactory:
    """What a trial of `count` processes asks for: as near to each other as can be, for they talk at every step."""
    return tune.PlacementGroupFactory([resources] * count, strategy="PACK")


def run_together(
    config: RayConfig, own: Callable[[], T], on_lost: Callable[[str], None], share: Callable[..., Any], *arguments: Any
) -> T:
    """`own` here, and `share(*arguments)` in each other process of the trial.

    Args:
        config: Says how many processes there are.
        own: The work of the first process.
        on_lost: Called with the reason before this process gives up because another is lost.
        share: The work of the others, a function of a module.
        arguments: What it is given.

    Raises:
        LostProcessError: Another process died.
    """
    if config.workers_per_trial == 1:
        return own()
    return _crew(config.workers_per_trial).run(own, on_lost, share, *arguments)


class GroupMember:
    """An actor: one process of the crew."""

    def address(self) -> str:
        return f"{ray.util.get_node_ip_address()}, process {os.getpid()},"

    def meet(self, address: str, port: int, rank: int, count: int) -> None:
        _talk_by(ray.util.get_node_ip_address())
        process_group.init_from_store(TCPStore(address, port, count, is_master=False), rank, count)

    def call(self, share: Callable[..., Any], *arguments: Any) -> None:
        share(*arguments)


class WorkerGroup:
    def __init__(self, count: int) -> None:
        group = ray.util.get_current_placement_group()
        assert group is not None
        self.members = []
        for rank, bundle in enumerate(group.bundle_specs[1:], start=1):
            place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
            needed = {"num_cpus": bundle.get("CPU", 0), "num_gpus": bundle.get("GPU", 0)}
            self.members.append(ray.remote(GroupMember).options(scheduling_strategy=place, **needed).remote())
        self.addresses = ray.get([member.address.remote() for member in self.members])
        own = ray.util.get_node_ip_address()
        listener = socket.create_server((own, 0))  # there alone, where the store itself would listen everywhere
        port = listener.getsockname()[1]
        self.store = TCPStore(
            own, port, count, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        met = [member.meet.remote(own, port, rank, count) for rank, member in enumerate(self.members, start=1)]
        _talk_by(own)
        process_group.init_from_store(self.store, 0, count)
        ray.get(met)

    def run(
        self, own: Callable[[], T], on_lost: Callable[[str], None], share: Callable[..., Any], *arguments: Any
    ) -> T:
        held = [ray.put(argument) for argument in arguments]
        works = [member.call.remote(share, *held) for member in self.members]
        ended = threading.Event()

        def watch() -> None:
            while not ended.is_set():
                lost = self._lost(works, timeout=1.0)
                if lost is not None and not ended.wait(GRACE):
                    on_lost(lost[0])
                    os._exit(1)

        watcher = threading.Thread(target=watch, name="bora-sweep crew", daemon=True)
        watcher.start()
        try:
            result = own()
            ray.get(works)
        except RuntimeError as error:
            lost = self._lost(works, timeout=GRACE / 2)
            if lost is None or not isinstance(lost[1], RayActorError):
                raise
            on_lost(lost[0])
            raise LostProcessError(lost[0]) from error
        finally:
            ended.set()
            watcher.join()
        return result

    def _lost(self, works: list, timeout: float) -> tuple[str, Exception] | None:
        """Which process failed, and how; None where none has within `timeout` seconds."""
        for work in ray.wait(works, num_returns=len(works), timeout=timeout)[0]:
            try:
                ray.get(work)
            except Exception as error:
                place = works.index(work)
                how = f"failed: {one_line(error.cause)}" if isinstance(error, RayTaskError) else "died"
                return f"of {len(works) + 1} processes of the fit that on {self.addresses[place]} {how}", error
        return None


@lru_cache(maxsize=1)
def _crew(count: int) -> WorkerGroup:
    """That of this process: its trials all have as many."""
    return WorkerGroup(count)


def _talk_by(address: str) -> None:
    """Gloo and NCCL would choose an interface by themselves; it is to be that by which Ray's nodes see each other."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address == address for found in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
