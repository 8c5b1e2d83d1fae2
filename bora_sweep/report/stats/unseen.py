"""What a task without any text can expect, from the column `unseen_nll_nats` of the best fit.

D tasks.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bora_sweep.report.stats.bootstrap import paired_bootstrap
from bora_sweep.report.stats.document_scores import DocumentScores
from bora_sweep.report.stats.interval import Interval


@dataclass(frozen=True)
class Unseen:
    """Test perplexity of tasks that were left out of the fit, over all their tokens; intervals are over tasks."""

    level: Interval
    own: float
    """Of the same documents, under the tasks' own adapters of the whole fit."""
    above_own: Interval
    """How far `level` lies above `own`, a fraction."""
    num_tasks: int


def unseen_tasks(task_scores: pd.DataFrame, trials: Iterable[tuple[str, str]]) -> Unseen | None:
    """The level of tasks without text, of the first of these trials that has it; None where none has.

    The tasks are resampled, not their documents: the next task without text is another one.

    Args:
        task_scores: The table, with `run`.
        trials: Run and id of those of the best fit, its seeds.
    """
    tested = task_scores[(task_scores["split"] == "test") & task_scores["unseen_nll_nats"].notna()]
    for run, trial_id in sorted(trials):
        rows = tested.loc[(tested["run"] == run) & (tested["trial_id"] == trial_id)]
        if len(rows):
            return _unseen(rows)
    return None


def _unseen(rows: pd.DataFrame) -> Unseen:
    """Of one trial's rows, one for each task with test documents."""
    tasks_as_documents = DocumentScores(
        task_N=np.full(len(rows), "", dtype=object),
        weight_N=rows["num_tokens"].to_numpy(dtype=float),
        value_NJ=rows[["unseen_nll_nats", "nll_nats"]].to_numpy(dtype=float),
    )
    drawn = paired_bootstrap(tasks_as_documents)
    return Unseen(drawn.level(0), drawn.level(1).estimate, drawn.difference(0, 1), len(rows))
