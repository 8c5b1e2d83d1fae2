"""How much tasks borrow, in words."""

import math

import numpy as np

from bora_sweep.errors import plural
from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.rank_correlation import spearman
from bora_sweep.report.stats.significance import ALPHA
from bora_sweep.report.text.formats import interval_text, tau_text


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
    low, high = (factor_text(float(end)) for end in (factor_D[known_D].min(), factor_D[known_D].max()))
    few, some, many = "each task on its own", "all the same", plural(int(known_D.sum()), "task")
    of_size = spearman(summary.train_documents_D[known_D], factor_D[known_D])
    size = ""
    if of_size.p < ALPHA:
        size = f"; tasks with {'less' if of_size.rho < 0 else 'more'} data borrow more"
    return (
        f"*How much tasks borrow.* At τ = {tau_text(summary.settings[found.setting].tau)} the pooling factor is "
        f"{interval_text(found.overall, factor_text)} (0: {few}; 1: {some}), and {low} to {high} in {many}{size} "
        "(Figure 6)."
    )
