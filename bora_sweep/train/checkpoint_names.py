"""The names of a checkpoint's tensors: rows by task or by group, columns by module, moments by bank.

Shapes: K adapters (one per task), P parameters of one adapter.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from bora_sweep.errors import InputError
from bora_sweep.model.layout import Layout

MOMENT = "optimizer."
GROUPS = "group_GP"
"""In the names of tensors with a row for each group."""


def names_of(layout: Layout, tasks: Sequence[str]) -> dict[str, Any]:
    """The names of the rows and columns of theta_KP, as JSON."""
    return {"tasks": list(tasks), "parts": [[part.site.name, part.kind, list(part.shape)] for part in layout.parts]}


def task_order(written: Mapping[str, Any], layout: Layout, tasks: Sequence[str], source: str) -> list[int]:
    """The row of each task in a file that was written with the names `written`.

    Args:
        written: Of `names_of`, from the file.
        layout: The parameters now.
        tasks: The tasks now.
        source: The file, for the message.

    Raises:
        InputError: The file has other tasks, other modules, or modules in another order.
    """
    now = names_of(layout, tasks)
    if different := sorted({*written["tasks"]} ^ {*now["tasks"]}):
        lacks = "lacks" if different[0] in now["tasks"] else "has"
        raise InputError(
            f"{source}: has other tasks: it {lacks} {different[0]!r}, and {len(different) - 1} more do not match; "
            "put back the data that it was fitted on, or begin a run of its own"
        )
    if written["parts"] != now["parts"]:
        parts = [
            part
            for part in (*written["parts"], *now["parts"])
            if part not in written["parts"] or part not in now["parts"]
        ]
        which = f", such as {parts[0][0]} ({parts[0][1]}, {parts[0][2]})" if parts else " in another order"
        raise InputError(
            f"{source}: has adapters of other modules{which}; put back the model that it was fitted on, or begin a "
            "run of its own"
        )
    row_of = {task: row for row, task in enumerate(written["tasks"])}
    return [row_of[task] for task in tasks]


def moments(optimizer: Optimizer, banks: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimiser's moments of each of these banks, as `optimizer.BANK.NAME`."""
    return {
        f"{MOMENT}{bank}.{name}": value
        for bank, parameter in banks.items()
        for name, value in optimizer.state.get(parameter, {}).items()
    }


def restore_moments(optimizer: Optimizer, banks: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Copy what `moments` gave into the optimiser's own moments: a device may not hold them twice.

    Args:
        optimizer: A new optimiser of the banks.
        banks: Theta and the tasks, by name.
        tensors: Of the checkpoint.
    """
    for key in (key for key in tensors if key.startswith(MOMENT)):
        bank, name = key.removeprefix(MOMENT).split(".")
        optimizer.state[banks[bank]][name].copy_(tensors[key])


def by_task(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors with a row for each task."""
    return [name for name, tensor in tensors.items() if tensor.dim() == 2 and GROUPS not in name.split(".")]


def check_groups(written: Mapping[str, str], groups: Mapping[str, str], source: str) -> None:
    """Refuse a file whose tasks were in other groups.

    Args:
        written: The group of each task, from the file.
        groups: The group of each task now.
        source: The file, for the message.

    Raises:
        InputError: A task is in another group.
    """
    moved = sorted(task for task in groups if written.get(task) != groups[task])
    if moved:
        raise InputError(
            f"{source}: task {moved[0]!r} was in group {written.get(moved[0])!r} and is in {groups[moved[0]]!r}; put "
            "back the groups that it was fitted with, or begin a run of its own"
        )
