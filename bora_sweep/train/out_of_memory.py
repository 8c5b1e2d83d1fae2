"""Lack of memory where fewer documents in a forward pass would not help: the message names what takes it, and a mend.

Shapes: K adapters (one per task), P parameters of one adapter.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import torch

from bora_sweep.config import Config
from bora_sweep.errors import one_line, plural
from bora_sweep.train.pack import Pack

T = TypeVar("T")

HOST_FULL = "DefaultCPUAllocator"
"""In torch's error where the host's memory runs out, a RuntimeError of no class of its own."""
COPIES = 4
"""Of a bank, at least: itself, its gradient, Adam's two moments."""


def as_torch_oom(work: Callable[[], T]) -> T:
    """Run `work`; raise a host's out-of-memory error as `torch.OutOfMemoryError`, as for a device."""
    try:
        return work()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or HOST_FULL in str(error):
            raise torch.OutOfMemoryError(one_line(error)) from error
        raise


def explain_oom(pack: Pack, config: Config, when: str, work: Callable[[], T]) -> T:
    """Run `work`, for which memory must hold the banks of a fit, whatever the rows of a forward pass.

    Args:
        pack: What the fit shares.
        config: Of the fit.
        when: For the message, such as "in the optimiser's step".
        work: What to run.

    Raises:
        torch.OutOfMemoryError: Memory does not hold them. The message is one for the user.
    """
    try:
        return as_torch_oom(work)
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(_message(pack, config, when, error)) from error


def _message(pack: Pack, config: Config, when: str, error: torch.OutOfMemoryError) -> str:
    num_tasks = 0 if math.isinf(config.tau) else pack.shard.num_tasks
    num_groups = len(pack.corpus.groups) if config.has_group_level else 0
    size = pack.layout.num_parameters
    dtype = torch.promote_types(pack.base.dtype, torch.float32)
    gigabytes = COPIES * (num_tasks + num_groups + 1) * size * dtype.itemsize / 1e9
    whose = f"Theta and {plural(num_tasks, 'task')}" if num_tasks else "Theta"
    whose += f" and {plural(num_groups, 'group')}" if num_groups else ""
    mends = [f"lower lora.rank={config.lora.rank}", "name fewer lora.target_modules", "use more memory"]
    if config.search.pack != 1:
        mends.insert(0, f"lower search.pack={config.search.pack}")
    if num_tasks:
        if config.update == "all" and not num_groups:
            mends.append("set train.bank=host")
        mends.append(f"raise ray.workers_per_trial={config.ray.workers_per_trial} with train.parallel=tasks")
    return (
        f"out of memory {when}: adapters of {whose}, {size:,} parameters each, take at least {gigabytes:.3g} GB with "
        f"gradients and moments, beside the base model; {', '.join(mends[:-1])} or {mends[-1]} "
        f"({one_line(error, limit=100)})"
    )
