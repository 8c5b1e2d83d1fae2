"""A GPU that several trials share: each process takes its own part of the memory, and no trial ends another."""

import torch

from bora_sweep.config import Config
from bora_sweep.errors import InputError

CUDA_BYTES = 512 << 20
"""Of a GPU's memory, about what CUDA itself takes for a process; torch's limit does not count it."""
_set_here = {"share": 1.0}
"""The share that this process has been given; torch begins with the whole GPU."""


def limit_gpu_memory(config: Config) -> None:
    """Let this process take the part `ray.gpus_per_trial` of its GPU's memory, or all of it if that is no fraction.

    Beyond it, torch raises the same error as where a whole GPU is full, and the fit goes on in smaller passes. Ray
    shows a process only the GPU that it gives it, so that this is the current device.

    Args:
        config: Of the sweep.

    Raises:
        InputError: The part is smaller than what CUDA itself takes.
    """
    gpus = config.ray.gpus_per_trial
    share = gpus if gpus is not None and 0 < gpus < 1 else 1.0
    if share == _set_here["share"] or config.train.device == "cpu" or not torch.cuda.is_available():
        return
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    fraction = share - CUDA_BYTES / total if share < 1 else 1.0
    if fraction <= 0:
        raise InputError(
            f"ray.gpus_per_trial={gpus}: this part of a GPU of {total / 2**30:.1f} GiB is less than the "
            f"{CUDA_BYTES / 2**30:g} GiB that CUDA itself takes for a process; raise it"
        )
    torch.cuda.set_per_process_memory_fraction(fraction)
    _set_here["share"] = share
