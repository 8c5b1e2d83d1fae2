"""Exports a trial's adapters as one bank: a file with a row for each task, in place of a folder for each.

`OUT/adapters.safetensors` has a tensor for each matrix of an adapter, by PEFT's name of it; the first axis is over
tasks. `OUT/tasks.json` has the row of each task, and is written last. There is one row where all
tasks have one adapter.

Shapes: K tasks, P parameters of one adapter.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bora_sweep.config import Setting
from bora_sweep.data.known_documents import DOCUMENTS
from bora_sweep.errors import InputError
from bora_sweep.model.layout import Layout, Part
from bora_sweep.model.peft_config import ADAPTER_CONFIG, IN_PEFT, peft_key
from bora_sweep.model.peft_io import BANK, GLOBAL, TASKS
from bora_sweep.runs.storage import Folder, atomic_write, read_bytes, read_local, write_bytes
from bora_sweep.serve.export import adapter_writer, begin_export, write_card
from bora_sweep.serve.hub import open_repository

_BLOCK = 256  # adapters in memory beside the bank


def export_bank(
    run: str | Folder,
    out: str | Path,
    trial: str = "best",
    tasks: Sequence[str] | None = None,
    *,
    settings: Sequence[Setting] = (),
    push: str | None = None,
    public: bool = False,
) -> dict[str, int]:
    """Write the tasks' adapters of a trial as a bank in float32, and Theta as a PEFT folder, with model cards.

    Args:
        run: The run's folder; also `s3://…` and `gs://…`.
        out: A new or empty folder.
        trial: The ID of a finished trial; `best`: the MAP fit that is best on validation by `search.objective`.
        tasks: Names of tasks; None: all.
        settings: As for `export`.
        push: As of `export`.
        public: As of `export`.

    Returns:
        The row of each task, as in `tasks.json`. That file is written last: a bank that has it is complete.

    Raises:
        InputError: As `export`; or PEFT has no such variant; or what was written is not what was fitted. Then nothing
            of it is left.
    """
    repository = open_repository(push, public=public)
    begun = begin_export(run, out, trial, tasks, settings)
    loaded, out = begun.loaded, begun.out
    if loaded.lora.variant not in IN_PEFT:
        raise InputError(
            f"--bank: PEFT has no lora.variant={loaded.lora.variant}; drop --bank, or write full models by --merge"
        )
    write, was_there = adapter_writer(loaded), out.exists()
    try:
        write(out / GLOBAL, loaded.mean_P)
        write_card(begun, out / GLOBAL, loaded.results, task=None)
        thetas = [loaded.mean_P] if loaded.is_shared else [loaded.theta_of[task] for task in begun.tasks]
        _write_tensors(out / BANK, loaded.layout, thetas, loaded.config.model.quantization)
        write_bytes(out / ADAPTER_CONFIG, (out / GLOBAL / ADAPTER_CONFIG).read_bytes())
        write_card(begun, out, loaded.results, task=None, bank=begun.tasks)
        if begun.documents is not None:
            write_bytes(out / DOCUMENTS, begun.documents)
        row_of = {task: 0 if loaded.is_shared else row for row, task in enumerate(begun.tasks)}
        write_bytes(out / TASKS, json.dumps(row_of, ensure_ascii=False, indent=2).encode())
    except BaseException:
        for path in out.iterdir() if out.exists() else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if out.exists() and not was_there:
            out.rmdir()
        raise
    if repository is not None:
        repository.upload(out)
    return row_of


def read_bank_rows(out: Folder) -> dict[str, int]:
    """The row of each task in a bank, by its `tasks.json`.

    Raises:
        InputError: The file is damaged.
    """
    try:
        rows = json.loads(read_bytes(out / TASKS))
        return {task: int(row) for task, row in rows.items()}
    except (ValueError, TypeError, AttributeError):
        raise InputError(f"{out / TASKS}: damaged; restore it from a copy, or export again") from None


def clear_rows(out: Folder, rows: Sequence[int]) -> None:
    """Set these rows of a bank to 0."""

    def write(source: Path, file: Path) -> None:
        with safe_open(source, "pt") as opened:
            bank, metadata = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118
        for tensor in bank.values():
            tensor[list(rows)] = 0
        save_file(bank, file, metadata)

    read_local(out / BANK, lambda source: atomic_write(out / BANK, lambda file: write(source, file)))


def _write_tensors(path: Path, layout: Layout, thetas: list[Tensor], quantization: str | None) -> None:
    """Write each part of the adapters as one tensor over tasks, and compare the file with what was fitted.

    Raises:
        InputError: They differ.
    """
    key_of = {part: peft_key(part) for part in layout.parts}
    bank = {key: torch.empty((len(thetas), *part.shape)) for part, key in key_of.items()}
    for rows, part, matrices in _blocks(layout, thetas):
        bank[key_of[part]][rows] = matrices
    metadata = {"format": "pt"} if quantization is None else {"format": "pt", "base_quantization": quantization}
    atomic_write(path, lambda file: save_file(bank, file, metadata))
    bank.clear()
    with safe_open(path, "pt") as written:
        for rows, part, matrices in _blocks(layout, thetas):
            if not torch.equal(written.get_slice(key_of[part])[rows], matrices):
                raise InputError(f"{path}: {key_of[part]} is not as it was fitted; nothing is exported")


def _blocks(layout: Layout, thetas: list[Tensor]) -> Iterator[tuple[slice, Part, Tensor]]:
    """The parts of some adapters at a time, in float32: which rows they are, which part, and its matrices."""
    for start in range(0, len(thetas), _BLOCK):
        theta_BP = torch.stack(thetas[start : start + _BLOCK]).float()
        for part, flat in zip(layout.parts, theta_BP.split(layout.sizes, dim=-1), strict=True):
            yield slice(start, start + len(theta_BP)), part, flat.unflatten(-1, part.shape)
