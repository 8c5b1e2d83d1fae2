"""Rows of all tasks outside of the step, where `train.update=present`: a step holds those of its own tasks alone.

A row is a task's deviation with Adam's moments and its count of steps. Before a step the rows of its tasks come to the
device; they go back when those of the next step take their place. With `train.bank=host` or `disk` a thread moves them:
it fetches the rows of the next step while this one computes, so that the device holds the rows of two steps.

The thread works in order. Rows that are fetched for the next step may lack what this step does to them, and nothing
else, since those of all earlier steps were written before. What two neighbouring steps share is handed over.

Shapes: K tasks of this process, U of them held, P parameters of one adapter.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from bora_sweep.config import Bank
from bora_sweep.errors import InputError
from bora_sweep.runs.storage import StorageFullError, cache_folder

T = TypeVar("T")

DELTA, MOMENTS, STEPS = "task_KP", ("exp_avg", "exp_avg_sq"), "step"
BEST = "best.task_KP"
"""The deviations of the best epoch."""
TASKS, BEST_TASKS = "tasks", "best.tasks"
"""In a checkpoint: the tasks of the rows that moved, and of those of `BEST`."""
BLOCK = 1 << 22
"""Numbers of a bank that are read at a time, where all of it is."""


@dataclass
class Rows:
    """The rows of some tasks on the device."""

    task_U: np.ndarray
    """Ascending."""
    banks: dict[str, Tensor]
    """`DELTA`, and for a step also `MOMENTS` and `STEPS`; (U, P), and counts (U, 1)."""
    is_newer: bool = False
    """Whether a step has moved them since they were fetched or written."""

    @property
    def is_complete(self) -> bool:
        """Whether they hold what a step needs."""
        return STEPS in self.banks


class RowBank:
    """The rows of this process's tasks; deviations begin at 0.

    Args:
        num_tasks: K.
        size: P.
        place: Where the whole bank is.
        device: Where steps are made.
        dtype: Of the numbers.

    Raises:
        InputError: Files cannot be made where banks on a disk belong.
        StorageFullError: The disk has no space for the bank.
    """

    def __init__(self, num_tasks: int, size: int, place: Bank, device: torch.device, dtype: torch.dtype) -> None:
        self.num_tasks, self.device = num_tasks, device
        zeros = partial(_zeros, place=place, device=device, dtype=dtype)
        self.banks = {name: zeros((num_tasks, size)) for name in (DELTA, *MOMENTS)} | {STEPS: zeros((num_tasks, 1))}
        self.banks[BEST] = _zeros((num_tasks, size), "host" if place == "device" else place, torch.device("cpu"), dtype)
        self.changed_K, self.best_changed_K = np.zeros((2, num_tasks), dtype=bool)
        self.held: Rows | None = None
        self._thread = None if place == "device" else ThreadPoolExecutor(1, thread_name_prefix="row-bank")
        self._stream = torch.cuda.Stream(device) if self._thread is not None and device.type == "cuda" else None
        self._next: tuple[np.ndarray, Future[Rows]] | None = None
        self._writes: list[Future[None]] = []

    def hold(self, task_B: np.ndarray) -> Rows:
        """The rows of these tasks, and maybe of others, to read the deviations."""
        if self.held is None or not np.isin(task_B, self.held.task_U).all():
            self._replace(np.unique(task_B), [DELTA])
        assert self.held is not None
        return self.held

    def hold_for_step(self, task_B: np.ndarray, following_B: np.ndarray | None = None) -> Rows:
        """The rows of these tasks alone, which a step moves in place; then `note_step` must be called.

        Args:
            task_B: The tasks of the step.
            following_B: Those of the next step, whose rows are fetched meanwhile.
        """
        task_U = np.unique(task_B)
        if self.held is None or not self.held.is_complete or not np.array_equal(task_U, self.held.task_U):
            self._replace(task_U, [DELTA, *MOMENTS, STEPS])
        assert self.held is not None
        if following_B is not None and self._thread is not None:
            following_U = np.unique(following_B)
            self._next = following_U, self._thread.submit(self._fetch, following_U, [DELTA, *MOMENTS, STEPS])
        return self.held

    def note_step(self) -> None:
        """Say that a step has moved the rows that are held."""
        assert self.held is not None
        self.held.is_newer = True
        self.changed_K[self.held.task_U] = True

    def flush(self) -> None:
        """Write the rows that are held, and wait for all that is not written yet."""
        if self.held is not None and self.held.is_newer:
            self._give_back(self.held)
            self.held.is_newer = False
        for write in self._writes:
            write.result()
        self._writes = []

    def on_device(self) -> list[Tensor]:
        """The tensors on the device: the rows that are held, those that are on their way, and a bank that is there."""
        coming = [] if self._next is None else list(self._next[1].result().banks.values())
        held = [] if self.held is None else list(self.held.banks.values())
        return [*held, *coming, *(self.banks.values() if self._thread is None else ())]

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """All deviations, some tasks at a time, where the bank is."""
        self.flush()
        rows = max(1, BLOCK // self.banks[DELTA].shape[1])
        for start in range(0, self.num_tasks, rows):
            part = slice(start, start + rows)
            yield part, self.banks[DELTA][part]

    def set(self, name: str, delta_KP: Tensor, tasks: slice | np.ndarray = slice(None)) -> None:
        """Set rows of `DELTA`, of moments, of counts or of `BEST`."""
        self.flush()
        self.held = self._next = None
        self.banks[name][tasks] = delta_KP.to(self.banks[name])
        (self.best_changed_K if name == BEST else self.changed_K)[tasks] = True

    def keep_best(self, tasks: slice | np.ndarray = slice(None)) -> None:
        """Keep the deviations of these tasks as the best ones."""
        self.flush()
        self.banks[BEST][tasks] = self.banks[DELTA][tasks].to(self.banks[BEST].device)
        self.best_changed_K[tasks] = True

    def return_to_best(self) -> None:
        """Make the best deviations the present ones, and end the fit: moments are let go."""
        self.flush()
        self.held = self._next = None
        self.banks = {DELTA: self.banks[BEST]}

    def changes(self) -> dict[str, Tensor]:
        """The rows that differ from those of the last checkpoint, copied to the host, with their tasks.

        `written` must be called once they are in a checkpoint.
        """
        self.flush()
        moved, best = (torch.from_numpy(np.flatnonzero(flags)) for flags in (self.changed_K, self.best_changed_K))
        rows = {name: self._rows(name, moved).cpu() for name in (DELTA, *MOMENTS, STEPS)}
        return {TASKS: moved, **rows, BEST_TASKS: best, BEST: self._rows(BEST, best)}

    def written(self) -> None:
        """Say that a checkpoint has what `changes` gave."""
        self.changed_K[:] = self.best_changed_K[:] = False

    def mark_all(self) -> None:
        """Let the next checkpoint have all rows."""
        self.changed_K[:] = self.best_changed_K[:] = True

    def _replace(self, task_U: np.ndarray, names: Sequence[str]) -> None:
        """Hold other rows: fetched, maybe before the last step moved some of them, and those handed over."""
        rows, held = self._fetched(task_U, names), self.held
        if held is not None and held.is_complete:
            _, new, old = np.intersect1d(task_U, held.task_U, assume_unique=True, return_indices=True)
            places = [torch.from_numpy(place).to(self.device, non_blocking=True) for place in (new, old)]
            for name, bank in rows.banks.items():
                bank.index_copy_(0, places[0], held.banks[name].index_select(0, places[1]))
            if held.is_newer:
                self._give_back(held)
        self.held = rows

    def _fetched(self, task_U: np.ndarray, names: Sequence[str]) -> Rows:
        """Rows as they were before the step whose rows are held, or after it."""
        following, self._next = self._next, None
        if following is not None and np.array_equal(following[0], task_U):
            rows = following[1].result()
        else:
            rows = self._in_order(partial(self._fetch, task_U, names)).result()
        if self._stream is not None:
            for bank in rows.banks.values():
                bank.record_stream(torch.cuda.current_stream(self.device))
        return rows

    def _give_back(self, rows: Rows) -> None:
        ready = None
        if self._stream is not None:
            ready = torch.cuda.Event()
            ready.record(torch.cuda.current_stream(self.device))
        self._writes = [write for write in self._writes if not write.done() or write.result()]
        self._writes.append(self._in_order(partial(self._write, rows.task_U, dict(rows.banks), ready)))

    def _in_order(self, work: Callable[[], T]) -> Future[T]:
        if self._thread is not None:
            return self._thread.submit(work)
        done: Future[T] = Future()
        done.set_result(work())
        return done

    @torch.no_grad()
    def _fetch(self, task_U: np.ndarray, names: Sequence[str]) -> Rows:
        places = torch.from_numpy(task_U)
        if self._stream is None:
            return Rows(task_U, {name: self._rows(name, places).to(self.device) for name in names})
        with torch.cuda.stream(self._stream):
            pinned = {name: self._rows(name, places).pin_memory() for name in names}
            rows = Rows(task_U, {name: bank.to(self.device, non_blocking=True) for name, bank in pinned.items()})
            self._stream.synchronize()
        return rows

    @torch.no_grad()
    def _write(self, task_U: np.ndarray, banks: dict[str, Tensor], ready: "torch.cuda.Event | None") -> None:
        places = torch.from_numpy(task_U)
        if ready is not None and self._stream is not None:
            self._stream.wait_event(ready)
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            for name, bank in banks.items():
                whole = self.banks[name]
                whole.index_copy_(0, places.to(whole.device), bank.to(whole.device))

    def _rows(self, name: str, places: Tensor) -> Tensor:
        whole = self.banks[name]
        return whole.index_select(0, places.to(whole.device))


def _zeros(shape: tuple[int, int], place: Bank, device: torch.device, dtype: torch.dtype) -> Tensor:
    if place == "disk":
        return _zeros_on_disk(shape, dtype)
    if place == "device":
        return torch.zeros(shape, device=device, dtype=dtype)
    return torch.zeros(shape, dtype=dtype, pin_memory=device.type == "cuda")


def _zeros_on_disk(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """A tensor in a file without a name, which is gone with the process, however that ends.

    All its space is taken at once: a page that finds no space later would kill the process.
    """
    folder, size = cache_folder() / "banks", shape[0] * shape[1] * dtype.itemsize
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115, closed below
    except OSError as error:
        raise InputError(
            f"train.bank=disk: {folder} cannot be written to ({error.strerror}); set BORA_SWEEP_CACHE to a folder on a "
            "disk of this machine"
        ) from None
    with opened as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise StorageFullError(
                errno.ENOSPC,
                f"no space left in {folder} for a bank of train.bank=disk, {size:,} bytes "
                f"({shutil.disk_usage(folder).free:,} bytes free); free some space, or set BORA_SWEEP_CACHE to a "
                "folder on a larger disk, then use --resume",
            ) from error
        numbers = np.memmap(file, np.dtype(str(dtype).removeprefix("torch.")), "r+", shape=shape)
    return torch.from_numpy(numbers)
