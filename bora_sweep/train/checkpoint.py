"""A trial's files: checkpoints that are written whole or not at all, and the adapters that remain.

`TRIAL/checkpoint-000007/{tensors.safetensors, state.json}` while a fit runs, `TRIAL/adapters.safetensors` once it has
ended. Nothing is pickled.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

ADAPTERS = "adapters.safetensors"


def save_checkpoint(trial: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write `trial/checkpoint-STEP` and drop the ones before it."""
    final = trial / f"checkpoint-{step:09d}"
    part = trial / f".{final.name}.{os.getpid()}.part"
    part.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part / "tensors.safetensors")
    (part / "state.json").write_text(json.dumps(state))
    for file in part.iterdir():
        _flush(file)
    _flush(part)
    if final.exists():  # the same step, written by a fit that did not live to see it
        shutil.rmtree(final)
    part.rename(final)
    _flush(trial)
    for older in _checkpoints(trial)[:-1]:
        shutil.rmtree(older)


def load_checkpoint(trial: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and state of the newest checkpoint, None where there is none."""
    found = _checkpoints(trial)
    if not found:
        return None
    return load_file(found[-1] / "tensors.safetensors"), json.loads((found[-1] / "state.json").read_text())


def save_adapters(trial: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write the fit's adapters, with `about` them as JSON in the file's header."""
    trial.mkdir(parents=True, exist_ok=True)
    part = trial / f".{ADAPTERS}.{os.getpid()}.part"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, {"about": json.dumps(about)})
    _flush(part)
    part.replace(trial / ADAPTERS)


def drop_checkpoints(trial: Path) -> None:
    """Remove what only a resume would need."""
    for leftover in [*trial.glob("checkpoint-*"), *trial.glob(".checkpoint-*.part")]:
        shutil.rmtree(leftover)


def load_adapters(trial: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_adapters` wrote."""
    with safe_open(trial / ADAPTERS, framework="pt") as file:
        about = json.loads(file.metadata()["about"])
        return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118, not a dict


def _checkpoints(trial: Path) -> list[Path]:
    return sorted(trial.glob("checkpoint-*"))


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
