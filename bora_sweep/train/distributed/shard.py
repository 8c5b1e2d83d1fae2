"""How a fit's tasks and documents are sharded over its processes.

`train.parallel=tasks`: each process holds the adapters of a block of tasks and works on their documents. The gradient
of a task's adapter is then complete on its process; only Theta's gradient needs an all-reduce. `train.parallel=data`,
and always at tau = inf, where tasks have no adapters: each process holds all parameters and works on every n-th
document; all gradients are reduced.

Shapes: K adapters (one per task), k of them on this process, P parameters of one adapter, B rows, C sequences.
"""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from bora_sweep.config import Config
from bora_sweep.data.batches import TaskBatch
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.errors import InputError
from bora_sweep.model.hierarchy import Hierarchy
from bora_sweep.train.distributed import process_group
from bora_sweep.train.row_bank import BEST_TASKS, TASKS


class Shard:
    """The part of a fit that this process holds and works on. A process alone has everything.

    Args:
        config: Of the fit.
        corpus: The tokenised text.

    Raises:
        InputError: There are fewer tasks than processes to hold them.
    """

    def __init__(self, config: Config, corpus: TokenizedCorpus) -> None:
        self.by_task = process_group.count() > 1 and config.parallel == "tasks" and config.tau < math.inf
        self.task_C, self.length_C = corpus.task_C, corpus.num_tokens_C
        self.blocks = [slice(0, corpus.num_tasks)]
        if self.by_task:
            if corpus.num_tasks < process_group.count():
                raise InputError(
                    f"ray.workers_per_trial={process_group.count()}: more processes than the {corpus.num_tasks} "
                    "tasks that they would hold; lower it, or set train.parallel=data"
                )
            train = corpus.sequences("train")
            tokens_K = np.bincount(self.task_C[train], self.length_C[train], minlength=corpus.num_tasks)
            self.blocks = even_blocks(tokens_K, process_group.count())

    @property
    def tasks(self) -> slice:
        """The tasks whose adapters this process holds."""
        return self.blocks[process_group.rank()] if self.by_task else self.blocks[0]

    @property
    def num_tasks(self) -> int:
        """How many they are."""
        return self.tasks.stop - self.tasks.start

    def sequences(self, sequence_B: np.ndarray) -> np.ndarray:
        """The sequences of a batch that this process works on."""
        if self.by_task:
            task_B = self.task_C[sequence_B]
            return sequence_B[(self.tasks.start <= task_B) & (task_B < self.tasks.stop)]
        if process_group.count() == 1:
            return sequence_B
        by_length = sequence_B[np.argsort(self.length_C[sequence_B], kind="stable")]
        return by_length[process_group.rank() :: process_group.count()]

    def tasks_of(self, sequence_B: np.ndarray) -> np.ndarray:
        """The tasks of a step's sequences whose rows move on this process, as rows of its bank.

        Where processes share the documents each of them moves the rows of all.
        """
        return self.task_C[self.sequences(sequence_B) if self.by_task else sequence_B] - self.tasks.start

    def localize(self, batch: TaskBatch) -> TaskBatch:
        """The batch with each task's row in this process's bank."""
        return replace(batch, task_B=batch.task_B - self.tasks.start) if self.by_task else batch

    def sum_over_tasks(self, over_local_tasks: Tensor) -> Tensor:
        """The sum over all tasks, in place, of a sum over this process's tasks."""
        return process_group.sum_(over_local_tasks) if self.by_task else over_local_tasks

    def sum_gradients_(self, hierarchy: Hierarchy) -> None:
        """All-reduce the gradients, so that each is that of the whole batch."""
        if process_group.count() == 1:
            return
        for bank in hierarchy.parameters():
            if not bank.requires_grad:
                continue
            if bank.grad is None:
                bank.grad = torch.zeros_like(bank)
            if not (self.by_task and bank is hierarchy.task_KP):
                process_group.sum_(bank.grad)

    def gather(self, bank_kP: Tensor) -> Tensor:
        """The rows of all tasks, on the host of rank 0; other ranks, and unsharded banks, get what they gave."""
        if not self.by_task:
            return bank_kP
        local_kP = bank_kP.cpu().contiguous()
        if not process_group.is_rank_zero():
            dist.send(local_kP, dst=0)
            return bank_kP
        all_KP = local_kP.new_empty(self.blocks[-1].stop, local_kP.shape[-1])
        all_KP[self.tasks] = local_kP
        for rank, block in enumerate(self.blocks[1:], start=1):
            dist.recv(all_KP[block], src=rank)
        return all_KP

    def gather_rows(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """What `RowBank.changes` gave on all processes, on rank 0; other ranks get what they gave.

        Each process has the rows of its tasks; `TASKS` and `BEST_TASKS` become tasks of all.
        """
        if not self.by_task:
            return rows
        own = {name: part + self.tasks.start if name in (TASKS, BEST_TASKS) else part for name, part in rows.items()}
        parts: list | None = [None] * process_group.count() if process_group.is_rank_zero() else None
        dist.gather_object(own, parts)
        return own if parts is None else {name: torch.cat([part[name] for part in parts]) for name in own}

    def shard(self, bank_KP: Tensor) -> Tensor:
        """This process's rows of a bank of all tasks."""
        return bank_KP[self.tasks].clone() if self.by_task else bank_KP


def even_blocks(weight_K: np.ndarray, count: int) -> list[slice]:
    """The tasks as `count` non-empty blocks of neighbours with about equal sums of weight."""
    share_K = np.cumsum(weight_K) / weight_K.sum()
    cuts = [0]
    for number in range(1, count):
        nearest = int(np.abs(share_K - number / count).argmin()) + 1
        cuts.append(min(max(nearest, cuts[-1] + 1), len(weight_K) - (count - number)))
    return [slice(low, high) for low, high in pairwise([*cuts, len(weight_K)])]
