"""Where a fit begins or goes on, and what a checkpoint holds of it.

Shapes: K adapters (one per task), P parameters of one adapter.
"""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bora_sweep.model.peft_io import read_adapters
from bora_sweep.runs.storage import Folder
from bora_sweep.train.checkpoint import ROWS, load_checkpoint, num_recorded_ooms, read_rows
from bora_sweep.train.checkpoint_names import by_task, check_groups, moments, names_of, restore_moments, task_order
from bora_sweep.train.distributed.process_group import from_rank_zero
from bora_sweep.train.row_bank import BEST, BEST_TASKS, DELTA, MOMENTS, STEPS, TASKS, RowBank
from bora_sweep.train.state import Start, State
from bora_sweep.train.trainer import Trainer


def start_or_resume(fit: Trainer, folder: Folder | None = None, start: Start | None = None) -> bool:
    """Resume from the newest checkpoint, else begin at `start`, else at the adapters of `init_from`.

    Args:
        fit: A new trainer.
        folder: Of the trial; None: there is nothing to resume from.
        start: Theta and the tasks' adapters of another fit.

    Returns:
        Whether the model should be scored before training, as epoch 0.

    Raises:
        InputError: The adapters or the checkpoint are not of this fit's tasks and modules.
    """
    checkpoint = from_rank_zero(lambda: None if folder is None else load_checkpoint(folder))
    if checkpoint is not None:
        tensors, progress, damage = checkpoint
        _restore(fit, tensors, progress, folder)
        fit.state.notes += damage
    _limit_rows(fit, from_rank_zero(lambda: 0 if folder is None else num_recorded_ooms(folder)))
    if checkpoint is not None:
        return False
    if start is None and fit.config.init_from is not None:
        source = Path(fit.config.init_from)
        start = Start(*read_adapters(source, fit.pack.layout, fit.config.lora, fit.pack.corpus.tasks))
    if start is not None:
        fit.begin_at(start.mean_P, fit.pack.shard.shard(start.theta_KP), start.theta_GP)
    return start is None or start.is_candidate


def _limit_rows(fit: Trainer, num_ooms: int) -> None:
    """Make forward passes as small as the fit's memory was seen to need.

    A process that is killed for its memory cannot say so: each recorded kill counts as one pass that was too large.
    """
    train = fit.config.train
    asked = train.micro_batch_size or train.batch_size
    before = fit.state.micro_batch_size or asked
    if (rows := max(1, asked >> num_ooms)) < before:
        fit.note_fewer_rows("killed for its memory", before, rows)
    if fit.state.micro_batch_size is not None:
        fit.pack.memory_rows = min(fit.pack.rows, fit.state.micro_batch_size)


def tensors_of(fit: Trainer) -> dict[str, Tensor]:
    """All tensors that a resume needs: parameters now and at the best epoch, and the optimiser's moments.

    Rank 0 gets the rows of all tasks, for which every process must call this.
    """
    best = {f"best.{name}": bank for name, bank in fit.best.items()}
    tensors = {**fit.parameters(), **best, **moments(fit.optimizer, dict(fit.whole_parameters()))}
    return {name: fit.pack.shard.gather(tensor) if tensor.dim() == 2 else tensor for name, tensor in tensors.items()}


def rows_of(fit: Trainer) -> dict[str, Tensor] | None:
    """The rows of a `RowBank` that differ from those of the last checkpoint; None where `tensors_of` has all.

    Rank 0 gets those of all processes, for which every process must call this.
    """
    if fit.bank is None:
        return None
    if from_rank_zero(lambda: fit.row_log.is_long):
        fit.bank.mark_all()
    return fit.pack.shard.gather_rows(fit.bank.changes())


def progress_of(fit: Trainer) -> dict[str, Any]:
    """All else that a resume needs, as JSON."""
    scaler = fit.pack.accelerator.scaler
    return {
        **names_of(fit.pack.layout, fit.pack.corpus.tasks),
        "groups": fit.pack.corpus.group_of,
        "state": asdict(fit.state),
        "dtype": fit.pack.dtype,
        "scheduler": fit.scheduler.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
    }


def _restore(fit: Trainer, tensors: dict[str, Tensor], progress: dict[str, Any], folder: Folder | None) -> None:
    order = task_order(progress, fit.pack.layout, fit.pack.corpus.tasks, "the fit's checkpoint")
    if fit.config.has_group_level:
        check_groups(progress["groups"], fit.pack.corpus.group_of, "the fit's checkpoint")
    fit.state = State(**progress["state"])
    fit.restored()
    if order != sorted(order):
        tensors = tensors | {name: tensors[name][order] for name in by_task(tensors)}
        fit.state.reorder(order, by_group=fit.config.is_by_group)
    if (before := progress.get("dtype", fit.pack.dtype)) != fit.pack.dtype:
        fit.state.notes.append(f"began with a base in {before} and went on with one in {fit.pack.dtype}")
    tensors = {name: fit.pack.shard.shard(tensor) if tensor.dim() == 2 else tensor for name, tensor in tensors.items()}
    names = list(fit.parameters())
    with torch.no_grad():
        for name, parameter in fit.whole_parameters():
            parameter.copy_(tensors[name])
    fit.best = {name: tensors[f"best.{name}"] for name in names}
    restore_moments(fit.optimizer, dict(fit.whole_parameters()), tensors)
    if fit.bank is not None and folder is not None:
        _restore_rows(fit, fit.bank, folder, progress[ROWS], order)
    fit.scheduler.load_state_dict(progress["scheduler"])
    for group, rate in zip(fit.optimizer.param_groups, fit.scheduler.get_last_lr(), strict=True):
        group["lr"] = rate
    if fit.pack.accelerator.scaler is not None:
        fit.pack.accelerator.scaler.load_state_dict(progress["scaler"])


def _restore_rows(
    fit: Trainer, bank: RowBank, folder: Folder, files: Sequence[tuple[int, str]], order: list[int]
) -> None:
    """Put the rows of these files into the bank, each task's where it is now.

    Args:
        fit: The fit.
        bank: Its rows.
        folder: Of the trial.
        files: Numbers and checksums.
        order: The row of each task in the files.
    """
    place_K, own = np.argsort(order), fit.pack.shard.tasks
    for number, checksum in files:
        rows = from_rank_zero(partial(read_rows, folder, number, checksum))
        for tasks, names in ((TASKS, (DELTA, *MOMENTS, STEPS)), (BEST_TASKS, (BEST,))):
            rows[tasks] = torch.from_numpy(place_K[rows[tasks].numpy()])
            is_own = ((own.start <= rows[tasks]) & (rows[tasks] < own.stop)).numpy()
            for name in names:
                bank.set(name, rows[name][is_own], rows[tasks].numpy()[is_own] - own.start)
        fit.row_log.note(number, checksum, rows)
    fit.row_log.note_checkpoint(fit.state.step)
    if order == sorted(order):
        bank.written()
    else:  # the files have the tasks in another order than the next checkpoint
        bank.mark_all()
