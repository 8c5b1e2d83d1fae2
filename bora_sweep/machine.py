"""What this machine has for fits: cores, memory, GPUs."""

import os
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from bora_sweep.cards import GIGABYTE, USABLE, Card
from bora_sweep.config import Config
from bora_sweep.errors import plural

CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Files with the bytes that a container may use, of Linux's control groups 2 and 1; `max`: no limit."""


@dataclass(frozen=True)
class Machine:
    """What fits may use here."""

    cores: int
    free_bytes: int
    cards: tuple[int, ...]
    """Bytes of each GPU."""
    at_once: int
    """Fits at once."""

    @property
    def bytes_of_a_fit(self) -> int:
        """What one of them may fill."""
        if self.cards:
            return Card(min(self.cards) / GIGABYTE).usable_bytes
        return round(USABLE * self.free_bytes / self.at_once)

    def __str__(self) -> str:
        gpus = f"{plural(len(self.cards), 'GPU')} of {min(self.cards) / GIGABYTE:.0f} GB" if self.cards else "no GPU"
        return f"{plural(self.cores, 'core')}, {self.free_bytes / GIGABYTE:.1f} GB of free memory, {gpus}"


def this_machine(config: Config) -> Machine:
    """What is here; with `train.device=cpu` without GPUs. A fit has a GPU, or else `ray.cpus_per_trial` cores.

    Args:
        config: Of the fits.
    """
    count = torch.cuda.device_count() if config.train.device == "auto" else 0
    cards = tuple(torch.cuda.get_device_properties(place).total_memory for place in range(count))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has none
    at_once = len(cards) or max(1, int(cores / config.ray.cpus_per_trial))
    most = config.ray.max_concurrent or at_once
    return Machine(cores, _free_bytes(), cards, min(at_once, most))


def _free_bytes() -> int:
    """The memory that is free, or the container's limit where that is lower: a container sees its host's memory."""
    limits = [file.read_text().strip() for file in CONTAINER_LIMITS if file.is_file()]
    return min([psutil.virtual_memory().available, *(int(limit) for limit in limits if limit.isdigit())])
