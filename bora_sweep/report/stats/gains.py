"""How much better the best tau is on test than one model per task and one model for all.

D tasks, C references.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bora_sweep.report.stats.bootstrap import Bootstrap, task_contrasts
from bora_sweep.report.stats.document_scores import DocumentScores
from bora_sweep.report.stats.interval import Interval
from bora_sweep.report.stats.significance import holm, sign_flip_limit, task_p_values, verdict
from bora_sweep.report.stats.summary import Summary

END_NAMES = {"independent": "one model per task (τ = 0)", "shared": "one model for all (τ = ∞)"}


@dataclass(frozen=True)
class Gain:
    """How much better the best fit is on test than a reference, with its 95% interval; above 0 where it is better.

    Of perplexity, how far it lies below, as a fraction. Of a metric, how far its mean lies above.
    """

    reference: str
    """`independent` (tau = 0), `shared` (tau = inf), or the name of what else it is compared with."""
    interval: Interval
    task: str | None = None
    """None: all tasks together."""
    train_documents: float = math.nan
    test_documents: float = math.nan
    p_value: float = math.nan
    adjusted_p: float = math.nan
    """By Holm's method over all tasks, for each reference separately."""
    verdict: str = ""
    """`gains`, `loses` or `no evidence`; empty for all tasks together."""
    smallest_p: float = math.nan
    """The smallest p-value that the task's number of documents allows."""

    @property
    def reference_in_words(self) -> str:
        return END_NAMES[self.reference]


def overall_gains(summary: Summary, bootstrap: Bootstrap) -> list[Gain]:
    """All tasks together, against each end of tau that was fitted and is not itself the best."""
    return [Gain(name, bootstrap.contrast(summary.best, m).gain()) for name, m in _ends(summary)]


def task_gains(summary: Summary, documents: DocumentScores) -> list[Gain]:
    """Figure 3: the gain of each task with test documents against each end, with a verdict.

    Args:
        summary: Of the run; its order of tasks is kept, most training documents first.
        documents: Test documents by one measure.
    """
    return gains_of(summary, documents, summary.best, _ends(summary))


def gains_of(
    summary: Summary, documents: DocumentScores, setting: int, references: Sequence[tuple[str, int]]
) -> list[Gain]:
    """The gain of each task with test documents by one setting over others, with verdicts.

    Args:
        summary: Of the run; its order of tasks is kept, most training documents first.
        documents: Test documents by one measure.
        setting: The setting that is judged.
        references: Name and setting of each that it is compared with.
    """
    if not references:
        return []
    differences = task_contrasts(documents, [(setting, m) for _, m in references])
    p_CD = [task_p_values(documents, differences, c, setting, m) for c, (_, m) in enumerate(references)]
    adjusted_CD = [holm(p_D) for p_D in p_CD]
    intervals_CD = [differences.gains(c) for c in range(len(references))]
    number_of = {task: d for d, task in enumerate(documents.tasks)}
    gains = []
    for task, size in zip(summary.tasks, summary.train_documents_D, strict=True):
        if task not in number_of:
            continue
        d = number_of[task]
        for c, (name, _) in enumerate(references):
            gains.append(
                Gain(
                    reference=name,
                    interval=intervals_CD[c][d],
                    task=task,
                    train_documents=float(size),
                    test_documents=float(documents.counts_D[d]),
                    p_value=float(p_CD[c][d]),
                    adjusted_p=float(adjusted_CD[c][d]),
                    verdict=verdict(float(differences.estimate[d, c]), float(adjusted_CD[c][d])),
                    smallest_p=sign_flip_limit(float(documents.counts_D[d])),
                )
            )
    return gains


def _ends(summary: Summary) -> list[tuple[str, int]]:
    """Name and setting of each end of tau that the best fit is compared with."""
    ends = {"independent": summary.independent, "shared": summary.shared}
    return [(name, m) for name, m in ends.items() if m is not None and m != summary.best]


def gains_against(gains: list[Gain], reference: str) -> list[Gain]:
    """Those against one reference, in their order."""
    return [gain for gain in gains if gain.reference == reference]
