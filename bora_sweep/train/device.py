"""The device of a fit, through Accelerate: how it is set up, its name, its peak memory."""

import ctypes
import os
import platform
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from bora_sweep.config import Config, Precision
from bora_sweep.errors import InputError
from bora_sweep.train.distributed import process_group

PASS_TOKENS = {"cuda": 5_000}
"""Tokens whose work takes a device as long as the fixed cost of one more forward and backward pass. For a CPU,
`bora_sweep.data.batches.MIN_PASS_ROWS` decides instead. On an H200 each pass keeps the host busy for 70 ms. In that
time the GPU does 5,000 tokens of Llama 3.2 1B, or 16,000 of opt-350m (benchmarks/results/first_gpu_run.md)."""


def make_accelerator(config: Config) -> Accelerator:
    """A new Accelerator for a fit.

    Accelerate keeps its state for the life of a process, and then refuses another precision or device. A worker process
    runs many fits, so the state is dropped before each. The process group stays from one fit to the next.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    with _unlaunched():
        precision = "no" if config.train.precision == "tf32" else config.train.precision
        accelerator = Accelerator(mixed_precision=precision, cpu=config.train.device == "cpu")
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    else:
        set_up_gpu(config.train.precision)
    return accelerator


def set_up_gpu(precision: Precision) -> None:
    """Choose torch's kernels, for this process.

    cuDNN's attention plans anew for each shape: 130 ms on an H200, where flash attention takes 1 ms. TF32 is off unless
    `train.precision` asks for it. With a base in bfloat16, what is left in float32 are the sums of gradients and DoRA's
    norms: a small part of the time, whose bits matter. Products in bfloat16 sum in float32.

    Args:
        precision: `train.precision`.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


@contextmanager
def _unlaunched() -> Iterator[None]:
    """Within, variables that would make Accelerate change the fit are hidden from it.

    `ACCELERATE_*` sets the device, divides losses or adds plugins; a fit's settings are in its configuration. The
    variables of a launcher would make Accelerate wait for other processes, though the fit has none, or has those of
    its own trial.
    """
    hidden = {name: value for name, value in os.environ.items() if name.startswith("ACCELERATE_")}
    if process_group.count() == 1 or os.environ.get("WORLD_SIZE") != str(process_group.count()):
        of_others = (*process_group.LAUNCHER, "PMI_", "OMPI_COMM_", "MV2_COMM_", "MPI_LOCAL")
        hidden |= {name: value for name, value in os.environ.items() if name.startswith(of_others)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


@cache
def keep_freed_memory() -> None:
    """Make glibc keep the memory that a step frees for the next step.

    By default glibc returns large blocks to the system, and each step maps its activations again, page by page. With
    these options, blocks of up to 32 MB (the highest that it takes) come from the heap, and up to 2 GB of free heap
    stay with the process.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3  # <malloc.h>
        set_option(m_mmap_threshold, 32 << 20)
        set_option(m_trim_threshold, (2 << 30) - 1)


def refuse_other_count(config: Config) -> None:
    """Refuse a fit whose number of processes is not the one that it asks for.

    Raises:
        InputError: The two numbers differ.
    """
    asked, started = config.ray.workers_per_trial, process_group.count()
    if asked != started:
        raise InputError(
            f"ray.workers_per_trial={asked}: number of processes that were started for the fit is {started}; set "
            f"ray.workers_per_trial={started}, or start {asked} as in docs/parallel.md"
        )


def wait_for(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
