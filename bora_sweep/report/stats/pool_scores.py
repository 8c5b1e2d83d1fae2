"""The scores of settings by one measure: documents matched, and levels of all tasks together and of each.

D tasks, M settings.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from bora_sweep.errors import require
from bora_sweep.report.stats.document_scores import DocumentScores, align_documents
from bora_sweep.report.stats.measure import Measure
from bora_sweep.report.stats.summary import Scores


class Sums(NamedTuple):
    """Values and weights summed over each task's documents; 0 for a task without documents in the split."""

    validation_DM: np.ndarray
    validation_weight_DM: np.ndarray
    test_DM: np.ndarray
    test_weight_DM: np.ndarray


def pool_scores(
    measure: Measure, rows: pd.DataFrame, settings: list[int], tasks: list[str], order_D: np.ndarray, sums: Sums | None
) -> Scores:
    """Scores of the settings by one measure.

    Args:
        measure: What the rows are scored by.
        rows: Of `document_scores`, or of one metric in `predictions`, with `setting` and `seed`.
        settings: Values of `setting`, in the order of the M columns.
        tasks: In the order of `sums`.
        order_D: The order in which tasks are shown.
        sums: What levels are made of; None: of the documents.

    Raises:
        InputError: The trials did not score the same documents, or none of a split.
    """
    of_split = {}
    for split in ("validation", "test"):
        scored = rows.loc[rows["setting"].isin(settings) & (rows["split"] == split)]
        require(not scored.empty, f"no {split} document is scored by {measure.name}: the report needs both splits")
        of_split[split] = align_documents(scored, settings, measure)
    if sums is None:
        sums = Sums(*(part for documents in of_split.values() for part in _sums(documents, tasks)))
    return Scores(
        measure=measure,
        validation=of_split["validation"],
        test=of_split["test"],
        validation_M=measure.level(ratio(sums.validation_DM.sum(axis=0), sums.validation_weight_DM.sum(axis=0))),
        test_M=measure.level(ratio(sums.test_DM.sum(axis=0), sums.test_weight_DM.sum(axis=0))),
        test_DM=measure.level(ratio(sums.test_DM, sums.test_weight_DM))[order_D],
    )


def _sums(documents: DocumentScores, tasks: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """value_DM and weight_DM of documents."""
    number_of = {task: d for d, task in enumerate(tasks)}
    at, shape = [number_of[task] for task in documents.tasks], (len(tasks), documents.value_NM.shape[1])
    value_DM, weight_DM = np.zeros(shape), np.zeros(shape)
    value_DM[at] = np.add.reduceat(documents.value_NM, documents.starts_D, axis=0)
    weight_DM[at] = np.add.reduceat(documents.weight_N, documents.starts_D)[:, None]
    return value_DM, weight_DM


def ratio(value: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """A ratio of sums; NaN where nothing was scored."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return value / weight
