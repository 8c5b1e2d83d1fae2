"""What sharing just so much gains over not sharing and over sharing all, for all tasks together and for each.

D tasks, C references.
"""

import math
from dataclasses import dataclass

import numpy as np

from bora_sweep.report.stats.bootstrap import Bootstrap, Interval, task_contrasts
from bora_sweep.report.stats.significance import holm, smallest_p, task_p_values, verdict
from bora_sweep.report.stats.summary import Summary

END_NAMES = {"independent": "one model per task (τ = 0)", "shared": "one model for all (τ = ∞)"}


@dataclass(frozen=True)
class Gain:
    """How far the best fit's test perplexity lies below a reference's, as a fraction with its 95% interval."""

    reference: str  # independent (tau = 0) or shared (tau = inf)
    interval: Interval
    task: str | None = None  # None: all tasks together
    train_documents: float = math.nan
    test_documents: float = math.nan
    p_value: float = math.nan
    adjusted_p: float = math.nan
    """By Holm's method over all tasks, for each reference on its own."""
    verdict: str = ""
    """`gains`, `loses` or `no evidence`; empty for all tasks together."""
    smallest_p: float = math.nan
    """The p-value that so few documents cannot get below."""

    @property
    def reference_in_words(self) -> str:
        return END_NAMES[self.reference]


def overall_gains(summary: Summary, bootstrap: Bootstrap) -> list[Gain]:
    """Over one model per task and over one for all, where they were fitted and are not themselves the best."""
    return [Gain(name, -bootstrap.relative_difference(summary.best, m)) for name, m in _ends(summary)]


def task_gains(summary: Summary) -> list[Gain]:
    """The same for each task on its own, as in Figure 3, with a verdict; by task, most training documents first."""
    ends, documents = _ends(summary), summary.documents
    if not ends:
        return []
    differences = task_contrasts(documents, [(summary.best, m) for _, m in ends])
    p_CD = [task_p_values(documents, differences, c, summary.best, m) for c, (_, m) in enumerate(ends)]
    adjusted_CD = [holm(p_D) for p_D in p_CD]
    place = {task: d for d, task in enumerate(documents.tasks)}
    gains = []
    for task, size in zip(summary.tasks, summary.train_documents_D, strict=True):
        d = place[task]
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
                    smallest_p=smallest_p(float(documents.counts_D[d])),
                )
            )
    return gains


def _ends(summary: Summary) -> list[tuple[str, int]]:
    ends = {"independent": summary.independent, "shared": summary.shared}
    return [(name, m) for name, m in ends.items() if m is not None and m != summary.best]


def values_of(gains: list[Gain], reference: str) -> tuple[np.ndarray, np.ndarray]:
    """Training documents and gains of the tasks against one reference."""
    part = [gain for gain in gains if gain.reference == reference]
    return np.array([gain.train_documents for gain in part]), np.array([gain.interval.estimate for gain in part])
