"""The tables of new_tasks.py: rules that end a fit, evaluated on curves, and paired intervals over test documents.

Shapes: T points of a curve, K tasks, N test documents.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from new_tasks_cells import FEW, Cell, Plan
from provenance import record
from task_curves import Curve

from bora_sweep.report.stats.bootstrap import paired_bootstrap
from bora_sweep.report.stats.document_scores import DocumentScores

STALL, STRICT = 0.05, 0.01
"""A fit has converged where its last steps, `window` of them, brought less than this share of the fall of J_d."""
NO_PRIOR = {"from Theta, no prior": "tuned", "from scratch": "scratch"}
METHODS = (
    "add",
    "Theta",
    *(name + also for name in NO_PRIOR for also in ("", ", best on test")),
    "refit",
    "refit, each alone",
)
RULES = (
    "Perplexities, and what a rule loses to the best number of steps on test, in %; in brackets steps, the mean over "
    "tasks. R1: the last quarter of the steps, 8 at least, brought less than 5% or 1% of the fall of J_d. R2: the "
    "{steps} steps to the run's best epoch, or to the curve's end. R3: the best number for documents of all tasks, "
    "left out in up to four folds. R4: the best number on validation for the run's own tasks, fitted so. A "
    "fifth held out: at its best point, fitted on the rest."
)
TITLE = "Tasks that come after a run"


@dataclass(frozen=True)
class Results:
    """What was computed for a corpus."""

    corpus: str
    documents: pd.DataFrame
    """The test documents of the held-out tasks: columns task and num_tokens."""
    curves: Mapping[Cell, Curve]
    fits: Mapping[Cell, Mapping[str, np.ndarray]]
    tau: float
    plan: Plan

    def of_tasks(self, found: Curve, point_K: np.ndarray) -> np.ndarray:
        """Nats of each test document, each task at its own point of a curve."""
        return found.test_TN[point_K[self.documents["task"]], np.arange(len(self.documents))]

    def perplexity(self, nll_N: np.ndarray) -> float:
        """Of all test documents together."""
        return math.exp(nll_N.sum() / self.documents["num_tokens"].sum())


def window(steps: int) -> int:
    """The last steps that convergence is judged by: a quarter, so that it does not depend on the learning rate."""
    return max(8, steps // 4)


def converged(found: Curve, stall: float = STALL) -> np.ndarray:
    """The point at which J_d of each task has stalled, else the last; shape K."""
    point_K = np.full(found.objective_TK.shape[1], len(found.step_T) - 1)
    for point in range(len(found.step_T) - 1, 0, -1):
        steps, asked = found.step_T[point] - found.step_T, window(int(found.step_T[point]))
        if steps[0] < asked:
            break
        before = np.flatnonzero(steps >= asked)[-1]
        rate_K = (found.objective_TK[before] - found.objective_TK[point]) / steps[before]
        fall_K = found.objective_TK[0] - found.objective_TK[point]
        point_K[asked * rate_K < stall * fall_K] = point
    return point_K


def oracle(found: Curve) -> np.ndarray:
    """The point at which all tasks together are best on test, for each of them; shape K."""
    return _everywhere(found, int(found.test_TN.sum(1).argmin()))


def held_out(found: Curve) -> np.ndarray:
    """The point at which each task is best on its documents that were held out; shape K."""
    return found.held_TK.argmin(0)


def after(found: Curve, steps: int) -> np.ndarray:
    """The last point within so many steps, for each task; shape K."""
    return _everywhere(found, int(np.flatnonzero(found.step_T <= steps)[-1]))


def best_pooled(found: Curve) -> int:
    """The steps after which documents that were held out are best, of all tasks together."""
    return int(found.step_T[found.held_TK.sum(1).argmin()])


def _everywhere(found: Curve, point: int) -> np.ndarray:
    return np.full(found.objective_TK.shape[1], point)


def methods_of(results: Results, count: int) -> dict[str, np.ndarray]:
    """Nats of each test document by method, with `count` documents of each task; without fits that need more."""
    add = results.curves[Cell("add", count)]
    found = {"add": results.of_tasks(add, converged(add)), "Theta": add.test_TN[0]}
    for name, kind in NO_PRIOR.items():
        if count > 1:
            held = results.curves[Cell(kind, count, held=True)]
            found[name] = results.of_tasks(held, held_out(held))
        best = results.curves[Cell(kind, count)]
        found[f"{name}, best on test"] = results.of_tasks(best, oracle(best))
    found["refit"] = results.fits[Cell("refit", count)]["test_N"]
    if count == FEW:
        alone = [
            results.fits[Cell("refit", count, only=k)]["test_N"] for k in range(len(results.documents["task"].unique()))
        ]
        found["refit, each alone"] = np.concatenate(alone)
    return found


def perplexity_rows(results: Results) -> list[dict]:
    """Test perplexity by n and method."""
    rows = []
    for count in results.plan.counts:
        methods = methods_of(results, count)
        rows.append(
            {"n": count, **{name: results.perplexity(methods[name]) if name in methods else None for name in METHODS}}
        )
    return rows


def difference_rows(results: Results) -> list[dict]:
    """Test perplexity of `add` over each other method's, less 1, with 95% intervals."""
    rows = []
    for count in results.plan.counts:
        methods = methods_of(results, count)
        others = {name: _difference(results, methods["add"], nll_N) for name, nll_N in methods.items()}
        rows.append({"n": count, **{name: others.get(name) for name in METHODS[1:]}})
    return rows


def _difference(results: Results, add_N: np.ndarray, other_N: np.ndarray) -> str:
    scores = DocumentScores(
        task_N=results.documents["task"].to_numpy(),
        weight_N=results.documents["num_tokens"].to_numpy(float),
        value_NJ=np.column_stack([add_N, other_N]),
    )
    between = paired_bootstrap(scores).difference(0, 1)
    return f"{100 * between.estimate:+.1f} [{100 * between.low:+.1f}, {100 * between.high:+.1f}]"


def rule_rows(results: Results, factor: float) -> list[dict]:
    """What each rule loses against the best number of steps on test, in % of its perplexity, and the steps it takes."""
    run_steps = int(results.fits[Cell("run", factor=factor)]["steps"][0])
    rows = []
    for count in results.plan.rule_counts:
        add = results.curves[Cell("add", count, factor=factor)]
        best = results.perplexity(results.of_tasks(add, oracle(add)))

        def lost(point_K: np.ndarray, found: Curve = add, best: float = best) -> str:
            loss = results.perplexity(results.of_tasks(found, point_K)) / best - 1
            return f"{100 * loss:.2f} ({found.step_T[point_K].mean():.0f})"

        def lost_after(kind: str, add: Curve = add, count: int = count, lost: Callable = lost) -> str | None:
            found = results.curves.get(Cell(kind, count, factor=factor))
            return None if found is None else lost(after(add, best_pooled(found)))

        held = results.curves.get(Cell("add", count, held=True, factor=factor))
        rows.append(
            {
                "n": count,
                "Theta": results.perplexity(add.test_TN[0]),
                "best on test": f"{best:.2f} ({add.step_T[oracle(add)[0]]})",
                f"R1, {STALL:.0%}": lost(converged(add)),
                f"R1, {STRICT:.0%}": lost(converged(add, STRICT)),
                "J to the end": lost(after(add, int(add.step_T[-1]))),
                "R2, as the run": f"{lost(after(add, run_steps))}",
                "R3, folds": lost_after("folds"),
                "R4, the run's tasks": lost_after("own"),
                "a fifth held out": None if held is None else lost(held_out(held), held),
            }
        )
    return rows


def step_rows(results: Results) -> list[dict]:
    """Test perplexity after some steps where documents are spread over steps, with gradients clipped or not."""
    rows = []
    for count, num_batches, clipped in results.plan.spreads:
        found = results.curves[Cell("add", count, num_batches=num_batches, clipped=clipped)]
        cells: dict[str, object] = {"n": count, "spread over": num_batches, "clipped": "at 1" if clipped else "no"}
        for steps in (8, 16, 32, 64):
            cells[f"after {steps} steps"] = results.perplexity(results.of_tasks(found, after(found, steps)))
        rows.append(cells | {"J_d after 64": float(found.objective_TK[after(found, 64)[0]].mean())})
    return rows


def write_tables(results: Results, about: str) -> None:
    """Put the tables of a corpus into `results/new_tasks.md`.

    Args:
        results: Of the corpus.
        about: The corpus, its run and the held-out tasks, in words.
    """

    def put(section: str, rows: list[dict], note: str) -> None:
        record("new_tasks", TITLE, f"{results.corpus}: {section}", rows, [note])

    unclipped = "Each step has all of a task's documents, and no gradient is clipped"
    held = "without a prior a fit ends where a fifth of the n documents, held out, is best, or where test is"
    put("test perplexity", perplexity_rows(results), f"{about} {unclipped}; `add` ends by R1 at {STALL:.0%}; {held}.")
    note = "In %, below 0 where `add` is better; 95% intervals, paired over the test documents of these tasks."
    put("`add` against each", difference_rows(results), note)
    for factor in results.plan.factors:
        steps = int(results.fits[Cell("run", factor=factor)]["steps"][0])
        put(f"rules at tau = {results.tau * factor:,.0f}", rule_rows(results, factor), RULES.format(steps=steps))
    if results.plan.spreads:
        note = "A step without a document of a task moves it by its momentum and the prior."
        put("documents in a step", step_rows(results), note)
