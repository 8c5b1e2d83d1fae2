"""Which tasks are shown where there are many: tables have the extremes, figures these and others at even steps.

Every task is in the CSV files, in the page's table, and in all lines and numbers over tasks.
"""

from collections.abc import Callable

import numpy as np

from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.gains import END_NAMES, gains_against

MANY_TASKS = 200
"""Tasks beyond which tables for readers have the extremes alone."""
MOST_DRAWN = 500
"""Tasks that a figure draws one by one."""
EXTREMES = 10
"""Tasks of each kind of extreme."""


def extreme_gains(analysis: Analysis) -> dict[str, list[int]]:
    """By what they are, in words: the tasks with the largest gains and losses, and the largest with test documents."""
    number_of = {task: d for d, task in enumerate(analysis.summary.tasks)}
    groups = {}
    for reference, name in END_NAMES.items():
        gains = gains_against(analysis.task_gains, reference)
        at = [number_of[str(gain.task)] for gain in gains]
        estimate = np.array([gain.interval.estimate for gain in gains])
        groups |= {
            f"Largest gains over {name}": _first(at, -estimate, lambda value: value < 0),
            f"Largest losses against {name}": _first(at, estimate, lambda value: value < 0),
        }
    return _filled(groups | {"Most training documents": analysis.tested[:EXTREMES]})


def extreme_levels(analysis: Analysis) -> dict[str, list[int]]:
    """By what they are, in words: the largest tasks, and those where the best fit is worst and best on test."""
    rank_D = analysis.measure.rank(analysis.scores.test_DM[:, analysis.summary.best])[analysis.tested]
    best, worst = analysis.measure.best_word, {"lowest": "highest", "highest": "lowest"}[analysis.measure.best_word]
    return _filled(
        {
            "Most training documents": list(range(min(EXTREMES, len(analysis.summary.tasks)))),
            f"The {worst}": _first(analysis.tested, -rank_D),
            f"The {best}": _first(analysis.tested, rank_D),
        }
    )


def drawn_tasks(analysis: Analysis) -> list[int]:
    """The tasks with test documents that a figure draws: all, or of many the extremes, and others spread by size."""
    tested = analysis.tested
    if len(tested) <= MOST_DRAWN:
        return tested
    extremes = {*_union(extreme_gains(analysis)), *_union(extreme_levels(analysis))}
    kept = {d for d in extremes if analysis.tested_D[d]}
    others = [d for d in tested if d not in kept]
    steps = np.linspace(0, len(others) - 1, MOST_DRAWN - len(kept)).round().astype(int)
    return sorted(kept | {others[step] for step in steps})


def in_print(analysis: Analysis) -> tuple[list[int], list[int]]:
    """The tasks of the LaTeX tables 2 and A.1: all, or of many those that `report.md` shows."""
    tested, tasks = analysis.tested, list(range(len(analysis.summary.tasks)))
    if len(tasks) <= MANY_TASKS:
        return tested, tasks
    return _union(extreme_gains(analysis)), _union(extreme_levels(analysis))


def _union(groups: dict[str, list[int]]) -> list[int]:
    return sorted({d for group in groups.values() for d in group})


def _first(tasks: list[int], key_D: np.ndarray, passes: Callable[[float], bool] = lambda _: True) -> list[int]:
    """The tasks with the lowest keys that pass; equal ones in their order."""
    order = np.argsort(key_D, kind="stable")[:EXTREMES]
    return [tasks[i] for i, key in zip(order, key_D[order].tolist(), strict=True) if passes(key)]


def _filled(groups: dict[str, list[int]]) -> dict[str, list[int]]:
    return {name: tasks for name, tasks in groups.items() if tasks}
