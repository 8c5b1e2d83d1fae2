"""How far the best tau's test perplexity lies below one model per task and below one model for all.

D tasks, C references.
"""

import math
from dataclasses import dataclass

from bora_sweep.report.stats.bootstrap import Bootstrap, task_contrasts
from bora_sweep.report.stats.interval import Interval
from bora_sweep.report.stats.significance import holm, sign_flip_limit, task_p_values, verdict
from bora_sweep.report.stats.summary import Summary

END_NAMES = {"independent": "one model per task (τ = 0)", "shared": "one model for all (τ = ∞)"}


@dataclass(frozen=True)
class Gain:
    """How far the best fit's test perplexity lies below a reference's, as a fraction with its 95% interval."""

    reference: str
    """`independent` (tau = 0) or `shared` (tau = inf)."""
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
    return [Gain(name, -bootstrap.relative_difference(summary.best, m)) for name, m in _ends(summary)]


def task_gains(summary: Summary) -> list[Gain]:
    """Figure 3: each task's gain against each end, with a verdict; most training documents first."""
    ends, documents = _ends(summary), summary.test_scores
    if not ends:
        return []
    differences = task_contrasts(documents, [(summary.best, m) for _, m in ends])
    p_CD = [task_p_values(documents, differences, c, summary.best, m) for c, (_, m) in enumerate(ends)]
    adjusted_CD = [holm(p_D) for p_D in p_CD]
    number_of = {task: d for d, task in enumerate(documents.tasks)}
    gains = []
    for task, size in zip(summary.tasks, summary.train_documents_D, strict=True):
        d = number_of[task]
        for c, (name, _) in enumerate(ends):
            gains.append(
                Gain(
                    reference=name,
                    interval=-differences.relative(d, c),
                    task=task,
                    train_documents=float(size),
                    test_documents=float(documents.counts_D[d]),
                    p_value=float(p_CD[c][d]),
                    adjusted_p=float(adjusted_CD[c][d]),
                    verdict=verdict(float(differences.nats_per_token[d, c]), float(adjusted_CD[c][d])),
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
