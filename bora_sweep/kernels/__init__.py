"""Triton kernels for GPUs, for what torch's operations do in many passes over memory.

Each has torch's operations as its other form, for a CPU and where Triton cannot run; that form is beside the call.
"""

import logging
import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from bora_sweep.errors import one_line

log = logging.getLogger(__name__)
OLDEST = (7, 0)
"""The lowest compute capability that Triton compiles for."""


def has_kernels_for(tensor: Tensor) -> bool:
    """Whether there are kernels for this tensor: float32 on a GPU that Triton compiles for.

    With TRITON_INTERPRET=1 Triton runs kernels in Python, on any device; the tests do so.
    """
    if tensor.dtype != torch.float32:
        return False
    interprets = os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None
    return interprets or (tensor.is_cuda and _compiles_for(tensor.device))


@cache
def _compiles_for(device: torch.device) -> bool:
    """Whether a kernel runs on this GPU; if it does not, the log says why. Triton needs a C compiler on the machine."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability(device) < OLDEST:
        return False
    try:
        from bora_sweep.kernels.adam import proximal_adam_

        tensors = [torch.ones(1, device=device) for _ in range(4)]
        proximal_adam_(*tensors, step=1, lr=0.0, rate=1.0, betas=(0.9, 0.999), eps=1e-8, precision=0.0)
    except Exception as error:
        log.warning("Triton does not run (%s); the same is computed by slower operations of torch", one_line(error))
        return False
    return True
