"""How much tasks borrow, in words."""

import math

import numpy as np

from bora_sweep.errors import plural
from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.rank_correlation import spearman
from bora_sweep.report.stats.significance import ALPHA
from bora_sweep.report.text.formats import interval_text, tau_text

MANY = 8
"""Tasks from which those with the lowest and the highest factor are left out, as their documents are few."""


def factor_text(factor: float) -> str:
    """Two decimals, which is more than documents tell; a dash where it is not known."""
    return "–" if math.isnan(factor) else f"{factor:.2f}".replace("-", "−")


def about_pooling(analysis: Analysis) -> str:
    """The pooling factor of all tasks and between which values those of single tasks lie; empty without one."""
    found = analysis.pooling
    if found is None or math.isnan(found.overall.estimate):
        return ""
    summary = analysis.summary
    factor_D = np.array([task.estimate for task in found.tasks])
    known_D = np.isfinite(factor_D)
    many, ends, middle = plural(int(known_D.sum()), "task"), (0.0, 1.0), ""
    if known_D.sum() >= MANY:
        ends, middle = (0.25, 0.75), "the middle half of "
    low, high = map(factor_text, np.quantile(factor_D[known_D], ends).tolist())
    of_size = spearman(summary.train_documents_D[known_D], factor_D[known_D])
    size = ""
    if of_size.p < ALPHA:
        size = f"; tasks with {'less' if of_size.rho < 0 else 'more'} data borrow more"
    return (
        f"*How much tasks borrow.* At τ = {tau_text(summary.settings[found.partial].tau)} the pooling factor is "
        f"{interval_text(found.overall, factor_text)} (0: each task on its own; 1: all the same), and {low} to {high} "
        f"in {middle}{many}{size} (Figure 6)."
    )
