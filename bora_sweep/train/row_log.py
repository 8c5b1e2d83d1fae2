"""The rows of a `RowBank` in checkpoints: each checkpoint writes those that have moved since the one before.

They are in files `rows-NUMBER.safetensors` of the trial. A checkpoint names the files that it needs, with their
checksums; in their order, later rows take the place of earlier ones. A file goes once no checkpoint needs it.

Shapes: K tasks on all processes.
"""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from bora_sweep.train.row_bank import BEST, BEST_TASKS, TASKS

KEPT = 2
"""Checkpoints of a trial: the newest, and one more in case it is damaged."""
MOST_COPIES = 3
"""Rows in the files for each task, beyond which the next checkpoint writes all rows anew."""

Files = dict[int, str]
"""Number of each file, ascending, to its checksum."""


class RowLog:
    """Which files have the newest rows. With several processes rank 0 alone needs it.

    Args:
        num_tasks: K.
    """

    def __init__(self, num_tasks: int) -> None:
        self.newest = {TASKS: np.full(num_tasks, -1), BEST_TASKS: np.full(num_tasks, -1)}
        self.checksum_of: Files = {}
        self.rows_of: dict[int, int] = {}
        self.needed_at: dict[int, Files] = {}
        """The files of the last two checkpoints, by their steps."""

    @property
    def files(self) -> Files:
        """The files that have the newest row of a task."""
        live = np.unique(np.concatenate([*self.newest.values()]))
        return {number: self.checksum_of[number] for number in live.tolist() if number >= 0}

    @property
    def next_number(self) -> int:
        """Of the next file."""
        return max(self.checksum_of, default=0) + 1

    @property
    def is_long(self) -> bool:
        """Whether most rows in the files have been overtaken by later ones."""
        return sum(self.rows_of[number] for number in self.files) > MOST_COPIES * len(self.newest[TASKS])

    def note_checkpoint(self, step: int) -> None:
        """Note that the checkpoint of this step needs the present files."""
        self.needed_at[step] = self.files
        self.needed_at = dict(sorted(self.needed_at.items())[-KEPT:])

    def note(self, number: int, checksum: str, rows: Mapping[str, Tensor]) -> None:
        """Note what a file has."""
        for name, newest_K in self.newest.items():
            newest_K[rows[name].numpy()] = number
        self.checksum_of[number], self.rows_of[number] = checksum, len(rows[TASKS])


def is_empty(rows: Mapping[str, Tensor]) -> bool:
    """Whether no row has moved."""
    return len(rows[TASKS]) == len(rows[BEST]) == 0
