"""What a fit's tensors are, by name: a checkpoint's rows by task, its columns by module, its moments by bank.

Shapes: K adapters (one per task), P parameters of one adapter.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from bora_sweep.errors import InputError
from bora_sweep.model.layout import Layout

MOMENT = "optimizer."


def names_of(layout: Layout, tasks: Sequence[str]) -> dict[str, Any]:
    """Of the rows and columns of theta_KP, as JSON."""
    return {"tasks": list(tasks), "parts": [[part.site.name, part.kind, list(part.shape)] for part in layout.parts]}


def task_order(told: Mapping[str, Any], layout: Layout, tasks: Sequence[str], source: str) -> list[int]:
    """The row of each of `tasks` in what `told`, of `names_of`, is about.

    Args:
        told: Names that were written.
        layout: What the parameters are now.
        tasks: The tasks now.
        source: What was read, for the message.

    Raises:
        InputError: It is of other tasks, or of other modules, or of these in another order.
    """
    own = names_of(layout, tasks)
    if different := sorted({*told["tasks"]} ^ {*own["tasks"]}):
        lacks = "lacks" if different[0] in own["tasks"] else "has"
        raise InputError(
            f"{source}: is of other tasks, it {lacks} {different[0]!r}, and {len(different) - 1} more do not match; "
            "put back the data that it was fitted on, or begin a run of its own"
        )
    if told["parts"] != own["parts"]:
        parts = [
            part for part in (*told["parts"], *own["parts"]) if part not in told["parts"] or part not in own["parts"]
        ]
        which = f", such as {parts[0][0]} ({parts[0][1]}, {parts[0][2]})" if parts else " in another order"
        raise InputError(
            f"{source}: is of adapters of other modules{which}; put back the model that it was fitted on, or begin a "
            "run of its own"
        )
    row_of = {task: row for row, task in enumerate(told["tasks"])}
    return [row_of[task] for task in tasks]


def moments(optimizer: Optimizer, banks: nn.Module) -> dict[str, Tensor]:
    """What the optimiser holds of each bank, as `optimizer.BANK.NAME`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{MOMENT}{bank}.{name}": value
        for index, bank in _indices(optimizer, banks)
        for name, value in state.get(index, {}).items()
    }


def restore_moments(optimizer: Optimizer, banks: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give them back to it."""
    held: dict[str, dict[str, Tensor]] = {}
    for key in (key for key in tensors if key.startswith(MOMENT)):
        bank, name = key.removeprefix(MOMENT).split(".")
        held.setdefault(bank, {})[name] = tensors[key]
    state = {index: held[bank] for index, bank in _indices(optimizer, banks) if bank in held}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _indices(optimizer: Optimizer, banks: nn.Module) -> Iterator[tuple[int, str]]:
    """The number that the optimiser's state has for each bank, and the bank's name."""
    name_of = {id(bank): name for name, bank in banks.named_parameters()}
    own = (bank for group in optimizer.param_groups for bank in group["params"])
    return enumerate(name_of[id(bank)] for bank in own)
