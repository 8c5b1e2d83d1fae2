"""A trial's files: checkpoints while it runs, `TRIAL/checkpoint-000000007.safetensors`, then its adapters.

Each is one file of tensors with JSON in its header and a checksum over both. A file that does not match its checksum is
refused. Nothing is pickled.
"""

import json
import zlib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, uint8

from bora_sweep.errors import InputError
from bora_sweep.runs.requests import STOP_TRIAL_FILE
from bora_sweep.runs.storage import Folder, atomic_write, list_files, read_bytes, read_local, remove, write_bytes
from bora_sweep.train.row_log import KEPT, RowLog, is_empty

ADAPTERS = "adapters.safetensors"
KILLS = "killed-for-memory"
FORMAT = 2
"""The format of checkpoints; a release that stores other things in them raises it."""
ROWS = "rows"
"""In a checkpoint's JSON: the number and the checksum of each file of rows."""
ROWS_FILES = f"rows-{'[0-9]' * 9}.safetensors"

Content = tuple[dict[str, Tensor], dict[str, Any]]


class DamagedError(InputError):
    """A file's content does not match its checksum."""


def save_checkpoint(
    trial: Folder,
    step: int,
    tensors: dict[str, Tensor],
    state: dict[str, Any],
    rows: dict[str, Tensor] | None = None,
    log: RowLog | None = None,
) -> None:
    """Write the checkpoint of `step`, and remove all but the one before it.

    Args:
        trial: The trial's folder.
        step: Optimiser steps made so far.
        tensors: Parameters and moments.
        state: All else, as JSON.
        rows: What `RowBank.changes` gave, of all processes; None: `tensors` has all.
        log: The files of rows; it notes the new one.
    """
    if rows is not None and log is not None:
        if not is_empty(rows):
            number = log.next_number
            log.note(number, _save(_rows_file(trial, number), rows, {}), rows)
        state = {**state, ROWS: list(log.files.items())}
    _save(trial / f"checkpoint-{step:09d}.safetensors", tensors, state)
    for older in _checkpoints(trial)[:-KEPT]:
        remove(older)
    if rows is not None and log is not None:
        log.note_checkpoint(step)
        needed = {_rows_file(trial, number).name for files in log.needed_at.values() for number in files}
        for file in list_files(trial, ROWS_FILES):
            if file.name not in needed:
                remove(file)


def read_rows(trial: Folder, number: int, checksum: str) -> dict[str, Tensor]:
    """One of the files of rows that a checkpoint names.

    Raises:
        DamagedError: It does not match its checksum, is another one, or is gone.
    """
    file = _rows_file(trial, number)
    try:
        tensors, _, _, written = read_local(file, _load)
    except FileNotFoundError:
        raise DamagedError(f"{file}: is gone; restore it from a copy") from None
    if written != checksum:
        raise DamagedError(f"{file}: is not the one that the checkpoint was written with; restore it from a copy")
    return tensors


def load_checkpoint(trial: Folder) -> tuple[dict[str, Tensor], dict[str, Any], list[str]] | None:
    """Read the newest undamaged checkpoint, all of whose files of rows are undamaged too.

    Returns:
        Its tensors, its state, and a note for each newer one that is damaged; None without any.

    Raises:
        InputError: It was written in another format.
    """
    damage: list[str] = []
    for file in reversed(_checkpoints(trial)):
        try:
            tensors, state, written, _ = read_local(file, _load)
            for number, checksum in state.get(ROWS, []):
                read_rows(trial, number, checksum)
        except DamagedError as error:
            damage.append(f"went on from the checkpoint before: {error}")
            continue
        if written != FORMAT:
            raise InputError(
                f"{file}: a checkpoint of another bora_sweep (format {written}, this one goes on from {FORMAT}); go on "
                "with the version that the trial's row names in `versions`, or remove the file to begin the trial anew"
            )
        return tensors, state, damage
    return None


def save_adapters(trial: Folder, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write the fit's adapters, with `about` as JSON in the file's header.

    Args:
        trial: The trial's folder.
        tensors: Theta, the tasks' adapters, and what else the method gives.
        about: JSON: tasks, base, settings of the adapters, sites.
    """
    _save(trial / ADAPTERS, tensors, about)


def load_adapters(trial: Folder) -> Content:
    """Read what `save_adapters` wrote.

    Raises:
        FileNotFoundError: There are no adapters yet.
        DamagedError: The file does not match its checksum.
    """
    tensors, about, *_ = read_local(trial / ADAPTERS, _load)
    return tensors, about


def drop_checkpoints(trial: Folder) -> None:
    """Remove the files that only a resume needs."""
    leftovers = [*list_files(trial, ROWS_FILES), *list_files(trial, ".*.safetensors.*.part")]
    leftovers += [trial / KILLS, trial / STOP_TRIAL_FILE]
    for leftover in [*_checkpoints(trial), *leftovers]:
        remove(leftover)


def record_oom(trial: Folder) -> None:
    """Record that the trial's process was killed for its memory, which it cannot do itself."""
    write_bytes(trial / KILLS, str(num_recorded_ooms(trial) + 1).encode())


def num_recorded_ooms(trial: Folder) -> int:
    """How often the trial's process was killed for its memory."""
    try:
        return int(read_bytes(trial / KILLS))
    except FileNotFoundError:
        return 0


def _checkpoints(trial: Folder) -> list[Folder]:
    return list_files(trial, f"checkpoint-{'[0-9]' * 9}.safetensors")  # not a copy of one


def _rows_file(trial: Folder, number: int) -> Folder:
    return trial / f"rows-{number:09d}.safetensors"


def _save(path: Folder, tensors: dict[str, Tensor], about: dict[str, Any]) -> str:
    """Write a file. Returns its checksum."""
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(about)
    header = {"about": text, "crc32": f"{_checksum(own, text):08x}", "format": str(FORMAT)}
    atomic_write(path, lambda file: save_file(own, file, header))
    return header["crc32"]


def _load(file: Path) -> tuple[dict[str, Tensor], dict[str, Any], int, str]:
    """Tensors, JSON, the format, and the checksum; the first format did not name itself."""
    try:
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118, not a dict
    except SafetensorError as error:
        raise DamagedError(f"{file}: damaged ({error}); restore it from a copy") from None
    checksum = f"{_checksum(tensors, header.get('about', '')):08x}"
    if header.get("crc32") != checksum:
        raise DamagedError(f"{file}: damaged (its checksum does not match); restore it from a copy")
    return tensors, json.loads(header["about"]), int(header.get("format", 1)), checksum


def _checksum(tensors: dict[str, Tensor], about: str) -> int:
    """CRC-32 of the JSON, and of each tensor's name, shape, type and bytes, in the order of the names."""
    value = zlib.crc32(about.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(uint8).numpy().data, value)
    return value
