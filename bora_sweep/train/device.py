"""The device of a fit, by way of Accelerate, and what it tells about itself."""

import platform
import resource
import sys

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from bora_sweep.config import Config
from bora_sweep.errors import InputError
from bora_sweep.train import ranks


def make_accelerator(config: Config) -> Accelerator:
    """An Accelerator for one fit, or for this process's part of one.

    Accelerate keeps its state for the life of a process and refuses another precision or device; a worker process runs
    many fits, so the state is dropped before each. The processes of a fit stay together from one to the next.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(mixed_precision=config.train.precision, cpu=config.train.device == "cpu")


def refuse_other_count(config: Config) -> None:
    """Refuse a fit for which another number of processes was started than it asks for.

    Raises:
        InputError: So it is.
    """
    asked, started = config.ray.workers_per_trial, ranks.count()
    if asked != started:
        raise InputError(
            f"ray.workers_per_trial={asked}: number of processes that were started for the fit is {started}; set "
            f"ray.workers_per_trial={started}, or start {asked} as in docs/parallel.md"
        )


def device_name(device: torch.device) -> str:
    """`cuda: NVIDIA H200`, or `cpu: x86_64`."""
    return (
        f"cuda: {torch.cuda.get_device_name(device)}"
        if device.type == "cuda"
        else f"{device.type}: {platform.machine()}"
    )


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory allocated on a GPU since the fit began; elsewhere the process's peak resident size so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
