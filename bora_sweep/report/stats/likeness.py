"""Who is like whom, from the tables `similarity` and `groups`.

Shapes: K tasks in the order of the tree.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from bora_sweep.report.stats.many_tasks import MANY_TASKS
from bora_sweep.runs.results import Results


@dataclass(frozen=True)
class Likeness:
    """How alike the tasks of one trial are."""

    trial_id: str
    tasks: list[str]
    group: list[str | None]
    """The group of each task; None of all of them: no structure."""
    silhouette_K: np.ndarray
    p_value: float
    similarity_KK: np.ndarray | None
    """None of more than `MANY_TASKS` tasks."""
    pairs: pd.DataFrame
    """The trial's rows of `similarity`."""

    @property
    def found(self) -> bool:
        """Whether the tasks fall into groups."""
        return any(name is not None for name in self.group)


def likeness(results: Results, best: str) -> Likeness | None:
    """Of the trial `best`, else of the last trial that was asked for its groups; None where none was.

    Args:
        results: Of one run.
        best: The trial to prefer.
    """
    asked = results.groups["trial_id"].unique().tolist()
    if not asked:
        return None
    trial_id = best if best in asked else asked[-1]
    rows = results.groups.loc[results.groups["trial_id"] == trial_id].sort_values("place")
    pairs = results.similarity.loc[results.similarity["trial_id"] == trial_id]
    tasks = rows["task"].tolist()
    return Likeness(
        trial_id=trial_id,
        tasks=tasks,
        group=[name if isinstance(name, str) else None for name in rows["group"]],
        silhouette_K=rows["silhouette"].to_numpy(),
        p_value=float(rows["p_value"].iloc[0]),
        similarity_KK=_matrix(pairs, tasks) if len(tasks) <= MANY_TASKS else None,
        pairs=pairs,
    )


def _matrix(pairs: pd.DataFrame, tasks: list[str]) -> np.ndarray:
    place_of = {task: place for place, task in enumerate(tasks)}
    one, other = (np.array([place_of[task] for task in pairs[name]], dtype=int) for name in ("task", "other"))
    similarity_KK = np.eye(len(tasks))
    similarity_KK[one, other] = similarity_KK[other, one] = pairs["similarity"]
    return similarity_KK
