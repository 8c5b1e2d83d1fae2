"""How often the report's 95% intervals hold the truth, and how often its verdicts are false, where the truth is known.

    python benchmarks/coverage.py [SKEWNESS | accuracy …]

Scores of documents are drawn, not fitted: tasks of unlike sizes (3 test documents to 120), documents of unlike lengths,
some hard and some easy under every fit alike, and each leaning its own way over tau; fits that differ by their seeds. A
thousand draws, each with tasks, documents and fits of its own, for each skewness of the effects of documents (0 and 1,
if none is given; 0 is a normal distribution, 2 an exponential one). Beside the report's intervals stand percentiles of
the plain paired bootstrap. `accuracy`, also if nothing is given, draws right and wrong answers instead of nats. In as
many processes as there are cores, two minutes or so for each. Written to `benchmarks/results/coverage.md`.

N documents, D tasks, M settings (values of tau), J trials, S replicates.
"""

import math
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from arguments import start
from provenance import RESULTS, record
from scipy.stats import norm

from bora_sweep.report.stats.bootstrap import REPLICATES, paired_bootstrap, task_contrasts
from bora_sweep.report.stats.document_scores import DocumentScores
from bora_sweep.report.stats.measure import measure_of
from bora_sweep.report.stats.significance import ALPHA, holm, task_p_values
from bora_sweep.report.stats.smooth_curve import fit_smooth_curve
from bora_sweep.report.stats.tau_choice import best_tau_interval
from bora_sweep.report.stats.trends import fit_trend

DRAWS = 1_000
TAUS = np.array([0, 1, 10, 100, 1e3, 1e4, math.inf])
PLACE_M = np.array([-1, 0, 1, 2, 3, 4, 5.0])
"""log10 tau, and beside the others for the ends."""
BEST, INDEPENDENT, SHARED, BETWEEN = 3, 0, 6, slice(1, 6)
ONE = "one fit, as it is"
SEEDS = {1: "1 seed, whatever the fit: not claimed", 2: "2 seeds, whatever the fit", 3: "3 seeds, whatever the fit"}
FALSE = "runs with a false verdict (at most 5)"
TRAIN_D = np.geomspace(15, 600, 28).round()
TEST_D = np.maximum(3, TRAIN_D // 5).astype(int)
PER_DOUBLING, EXPONENT = -0.03, 0.25
"""Of the gain over one model per task, and of the distance to the global adapter."""
SKEWNESS = (0.0, 1.0)
ACCURACY, ACCURACY_D = "accuracy", (0.3, 0.95)
"""Of a task under the best fit: between these."""
ALIKE = 0.8
"""Correlation between two fits of what decides whether a document is answered right."""
BANDS = ((3, 5), (6, 10), (11, 30), (31, 120))
FIT, FIT_OF_TASK, SEED = 0.003, 0.01, 0.004
"""Standard deviations, in nats per token, of a fit: for all tasks alike, for each, and shared by fits of one seed."""


@dataclass(frozen=True)
class World:
    """Tasks, and what their documents are expected to score."""

    nats_DM: np.ndarray
    length_D: np.ndarray
    distance_D: np.ndarray
    skewness: float

    @cached_property
    def overall_M(self) -> np.ndarray:
        """Expected nats per token of all tasks together."""
        lengths_SD = _lengths(np.random.default_rng(0), np.broadcast_to(self.length_D, (10_000, len(self.length_D))))
        weight_D = TEST_D * lengths_SD.mean(axis=0)
        return weight_D @ self.nats_DM / weight_D.sum()

    def documents(self, rng: np.random.Generator, seeds: int = 1, noise: bool = False) -> DocumentScores:
        """One document after another, each under every setting and seed."""
        task_N = np.repeat(np.arange(len(TEST_D)), TEST_D)
        tokens_N = _lengths(rng, self.length_D[task_N])
        hard_N1, lean_N1 = self._effects(rng, (2, len(task_N), 1))
        own_NM = self._effects(rng, (len(task_N), len(TAUS)))
        per_token_NM = self.nats_DM[task_N] + 0.5 * hard_N1 + 0.03 * lean_N1 * (PLACE_M - 2) + 0.03 * own_NM
        chance_N1 = rng.normal(size=(len(task_N), 1)) / np.sqrt(tokens_N)[:, None]
        parts = []
        for _ in range(seeds):
            fit_DM = FIT * rng.normal(size=len(TAUS)) + FIT_OF_TASK * rng.normal(size=self.nats_DM.shape)
            fit_DM += SEED * rng.normal() if noise else 0
            own = 0.01 * self._effects(rng, per_token_NM.shape)
            parts.append(per_token_NM + chance_N1 + (fit_DM[task_N] + own if noise else 0))
        nats_NJ = tokens_N[:, None] * np.column_stack(parts)
        setting_J, seed_J = np.tile(np.arange(len(TAUS)), seeds), np.repeat(np.arange(seeds), len(TAUS)).astype(float)
        names_N = np.array([f"{d:02d}" for d in task_N], dtype=object)
        return DocumentScores(names_N, tokens_N, nats_NJ, setting_J, seed_J)

    def _effects(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Of mean 0 and variance 1."""
        if not self.skewness:
            return rng.normal(size=shape)
        power = 4 / self.skewness**2  # of a gamma distribution
        return (rng.gamma(power, size=shape) - power) / power**0.5


def draw_world(rng: np.random.Generator, skewness: float, null: float = 0.0) -> World:
    """A U over tau, another for each task; in a share `null` of the tasks both ends are as good as the best."""
    tasks = len(TEST_D)
    own_D1 = rng.normal(0, 0.01, (tasks, 1))
    nats_DM = 2.5 + rng.normal(0, 0.3, (tasks, 1)) + 0.008 * (PLACE_M - 2.3) ** 2 + own_D1 * (PLACE_M - 2)
    gain_D = 0.25 + PER_DOUBLING * np.log2(TRAIN_D) + rng.normal(0, 0.02, tasks)
    nats_DM[:, INDEPENDENT] = nats_DM[:, BEST] - np.log1p(-gain_D)
    nats_DM[:, SHARED] = nats_DM[:, BEST] + rng.normal(0.03, 0.03, tasks)
    is_null_D = rng.permutation(tasks) < round(null * tasks)
    for end in (INDEPENDENT, SHARED):
        nats_DM[is_null_D, end] = nats_DM[is_null_D, BEST]
    distance_D = 0.5 * TRAIN_D**EXPONENT * np.exp(rng.normal(0, 0.2, tasks))
    return World(nats_DM, np.exp(rng.normal(4.3, 0.3, tasks)), distance_D, skewness)


def _lengths(rng: np.random.Generator, middle: np.ndarray) -> np.ndarray:
    return np.clip(middle * np.exp(rng.normal(0, 0.7, middle.shape)), 4, 512).round()


@dataclass(frozen=True)
class Answers:
    """Tasks, and how often a document of each is answered right."""

    right_DM: np.ndarray

    @cached_property
    def overall_M(self) -> np.ndarray:
        """Expected accuracy over all documents."""
        return TEST_D @ self.right_DM / TEST_D.sum()

    def documents(self, rng: np.random.Generator) -> DocumentScores:
        """One document after another, right (-1) or wrong (0) under every setting; a hard one is hard for all."""
        task_N = np.repeat(np.arange(len(TEST_D)), TEST_D)
        hard_N1, own_NM = rng.normal(size=(len(task_N), 1)), rng.normal(size=(len(task_N), len(TAUS)))
        is_right_NM = ALIKE**0.5 * hard_N1 + (1 - ALIKE) ** 0.5 * own_NM < norm.ppf(self.right_DM[task_N])
        names_N = np.array([f"{d:02d}" for d in task_N], dtype=object)
        return DocumentScores(names_N, np.ones(len(task_N)), -is_right_NM.astype(float), measure=measure_of(ACCURACY))


def draw_answers(rng: np.random.Generator, null: float = 0.0) -> Answers:
    """The ends are worse than the best; in a share `null` of the tasks they are as good."""
    tasks = len(TEST_D)
    best_D1 = rng.uniform(*ACCURACY_D, (tasks, 1))
    worse_DM = rng.uniform(0, 0.1, (tasks, len(TAUS))) * (np.arange(len(TAUS)) != BEST)
    worse_DM[:, INDEPENDENT] += 0.1
    worse_DM[rng.permutation(tasks) < round(null * tasks)] = 0
    return Answers(best_D1 - worse_DM)


Hit = tuple[str, str, float, float]
"""Quantity, documents, 1 where the report's interval holds the truth, and the same of plain percentiles or NaN."""


def overall_hits(world: World, documents: DocumentScores, rng: np.random.Generator, said: str) -> Iterator[Hit]:
    """All tasks together: a level, and two differences."""
    truth_M, bootstrap = world.overall_M, paired_bootstrap(documents, seed=int(rng.integers(2**31)))
    plain_SM = _plain(documents, rng) if said == ONE else None
    pairs = (("perplexity", BEST, None), ("against τ = 0", BEST, INDEPENDENT), ("against τ = ∞", BEST, SHARED))
    for name, m, reference in pairs:
        truth = truth_M[m] - (0 if reference is None else truth_M[reference])
        low, high = bootstrap.contrast(m, reference).bounds
        plain = math.nan
        if plain_SM is not None:
            plain_S = plain_SM[:, m] - (0 if reference is None else plain_SM[:, reference])
            plain = _percentiles_hold(plain_S, truth)
        yield f"all tasks, {name}", said, _holds(float(low), float(high), truth), plain


def task_hits(world: World, documents: DocumentScores, rng: np.random.Generator, said: str = "") -> Iterator[Hit]:
    """Each task: a level and a difference, by how many documents it has."""
    contrasts = task_contrasts(documents, [(BEST, None), (BEST, SHARED)], seed=int(rng.integers(2**31)))
    truth_DC = np.column_stack([world.nats_DM[:, BEST], world.nats_DM[:, BEST] - world.nats_DM[:, SHARED]])
    hit_DC = (contrasts.bounds[0] <= truth_DC) & (truth_DC <= contrasts.bounds[1])
    for d, n in enumerate(TEST_D):
        plain_C = [math.nan, math.nan] if said else _plain_of_task(documents, d, rng, truth_DC[d])
        for c, name in enumerate(("perplexity", "against τ = ∞")):
            yield f"one task, {name}", said or _band(n), float(hit_DC[d, c]), plain_C[c]


def _plain_of_task(documents: DocumentScores, d: int, rng: np.random.Generator, truth_C: np.ndarray) -> list[float]:
    plain_SM = _plain(documents.of_task(documents.tasks[d]), rng)
    parts = (plain_SM[:, BEST], plain_SM[:, BEST] - plain_SM[:, SHARED])
    return [_percentiles_hold(part, truth) for part, truth in zip(parts, truth_C, strict=True)]


def _plain(documents: DocumentScores, rng: np.random.Generator) -> np.ndarray:
    """mean_SM of n draws of a task's n documents."""
    values_NC = np.column_stack([documents.value_NM, documents.weight_N])
    totals_SC = np.zeros((REPLICATES, values_NC.shape[1]))
    for values_nC in np.split(values_NC, documents.starts_D[1:]):
        n = len(values_nC)
        totals_SC += rng.multinomial(n, np.full(n, 1 / n), REPLICATES) @ values_nC
    return totals_SC[:, :-1] / totals_SC[:, -1:]


def accuracy_hits(number: int) -> list[Hit]:
    """All intervals of accuracy of one draw. Tasks whose documents all agree have none; the others are counted."""
    rng = np.random.default_rng([number, 1])
    answers = draw_answers(rng)
    documents, hits = answers.documents(rng), []
    bootstrap, plain_SM = paired_bootstrap(documents, seed=int(rng.integers(2**31))), _plain(documents, rng)
    pairs = (("accuracy", BEST, None), ("against τ = 0", BEST, INDEPENDENT), ("against τ = ∞", BEST, SHARED))
    contrasts = task_contrasts(documents, [(m, reference) for _, m, reference in pairs], seed=int(rng.integers(2**31)))
    for c, (name, m, reference) in enumerate(pairs):
        truth = answers.overall_M[m] - (0 if reference is None else answers.overall_M[reference])
        truth_D = answers.right_DM[:, m] - (0 if reference is None else answers.right_DM[:, reference])
        shown = bootstrap.level(m) if reference is None else bootstrap.difference(m, reference)
        plain_S = plain_SM[:, m] - (0 if reference is None else plain_SM[:, reference])
        hits.append(
            (f"all tasks, {name}", "", _holds(shown.low, shown.high, truth), _percentiles_hold(-plain_S, truth))
        )
        for d, n in enumerate(TEST_D):
            shown = contrasts.level(d, c) if reference is None else contrasts.difference(d, c)
            is_known = not math.isnan(shown.low)
            hits.append((f"*tasks with an interval*, {name}", _band(n), float(is_known), math.nan))
            if is_known:
                hits.append((f"one task, {name}", _band(n), _holds(shown.low, shown.high, truth_D[d]), math.nan))
    for null, said in ((1.0, "every task alike"), (0.5, "half of the tasks alike")):
        world = draw_answers(rng, null)
        is_null_D = world.right_DM[:, BEST] == world.right_DM[:, SHARED]
        hits.append((FALSE, said, _false_verdict(world.documents(rng), is_null_D, rng), math.nan))
    return hits


def slope_hits(world: World, documents: DocumentScores) -> Iterator[Hit]:
    """Lines through tasks, against the law that tasks are drawn from."""
    totals_DM = np.add.reduceat(documents.value_NM, documents.starts_D, axis=0)
    per_token_DM = totals_DM / np.add.reduceat(documents.weight_N, documents.starts_D)[:, None]
    gain_D = -np.expm1(per_token_DM[:, BEST] - per_token_DM[:, INDEPENDENT])
    lines = (
        ("gain over τ = 0", fit_trend("", TRAIN_D, gain_D), PER_DOUBLING),
        ("distance", fit_trend("", TRAIN_D, world.distance_D, is_log=True), 2**EXPONENT - 1),
        ("perplexity", fit_trend("", TRAIN_D, np.exp(per_token_DM[:, BEST]), is_log=True), 0.0),
    )
    for name, line, truth in lines:
        assert line is not None
        yield f"slope of {name}", f"{len(TRAIN_D)} tasks", _holds(line.slope.low, line.slope.high, truth), math.nan


def tau_hits(world: World, documents: DocumentScores, rng: np.random.Generator, said: str) -> Iterator[Hit]:
    """The best tau: the lowest point of the parabola that all documents' expected scores make."""
    shape = np.polyfit(PLACE_M[BETWEEN], world.overall_M[BETWEEN], 2)
    truth = float(10 ** (-shape[1] / (2 * shape[0])))
    bootstrap = paired_bootstrap(documents, seed=int(rng.integers(2**31)))
    observed_M, nats_SM = bootstrap.mean_M, bootstrap.with_seeds(int(rng.integers(2**31)))
    curve = fit_smooth_curve(TAUS[BETWEEN], observed_M[BETWEEN], nats_SM[:, BETWEEN])
    assert curve is not None
    found = {
        "τ where the curve is lowest": best_tau_interval(TAUS, observed_M, nats_SM),
        "τ as good as the best (holds the best)": curve.as_good,
    }
    for name, interval in found.items():
        yield name, said, _holds(interval.low, interval.high, truth), math.nan


def false_verdicts(rng: np.random.Generator, skewness: float, null: float) -> float:
    """1 where a task whose ends are as good as its best is said to gain or lose."""
    world = draw_world(rng, skewness, null)
    documents = world.documents(rng)
    return _false_verdict(documents, world.nats_DM[:, BEST] == world.nats_DM[:, SHARED], rng)


def _false_verdict(documents: DocumentScores, is_null_D: np.ndarray, rng: np.random.Generator) -> float:
    differences = task_contrasts(documents, [(BEST, SHARED)], seed=int(rng.integers(2**31)))
    adjusted_D = holm(task_p_values(documents, differences, 0, BEST, SHARED))
    return float((adjusted_D[is_null_D] < ALPHA).any())


def _holds(low: float, high: float, truth: float) -> float:
    return float(low <= truth <= high)


def _percentiles_hold(replicates_S: np.ndarray, truth: float) -> float:
    low, high = np.quantile(replicates_S, [0.025, 0.975])
    return _holds(low, high, truth)


def _band(documents: int) -> str:
    low, high = next(band for band in BANDS if documents <= band[1])
    return f"{low} to {high} documents"


def draw(skewness: float, number: int) -> list[Hit]:
    """All intervals of one draw."""
    rng = np.random.default_rng([number, int(100 * skewness)])
    world = draw_world(rng, skewness)
    documents = world.documents(rng)
    hits = [*overall_hits(world, documents, rng, ONE), *task_hits(world, documents, rng)]
    hits += [*slope_hits(world, documents), *tau_hits(world, documents, rng, ONE)]
    for seeds, said in SEEDS.items():
        several = world.documents(rng, seeds, noise=True)
        hits += overall_hits(world, several, rng, said)
        hits += task_hits(world, several, rng, said) if seeds == 2 else []
        hits += tau_hits(world, several, rng, said) if seeds == 3 else []
    for null, said in ((1.0, "every task alike"), (0.5, "half of the tasks alike")):
        hits.append((FALSE, said, false_verdicts(rng, skewness, null), math.nan))
    return hits


def table(hits: list[Hit]) -> list[dict]:
    """Coverage in per cent, a row for each quantity."""
    rows: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for quantity, documents, hit, plain in hits:
        rows.setdefault((quantity, documents), []).append((hit, plain))
    told = []
    for (quantity, documents), held in rows.items():
        ours, plain = 100 * np.mean(held, axis=0)
        said = None if math.isnan(plain) else f"{plain:.1f}"
        told.append(
            {
                "interval of": quantity,
                "from": documents,
                "holds the truth, %": f"{ours:.1f}",
                "percentiles would, %": said,
            }
        )
    return told


NOTES = [
    f"{DRAWS:,} draws; a figure near 95 has a standard error of 0.7 points, those of single tasks less. *One fit, as "
    "it is*: the truth is what these fits score on all documents there could be. *Whatever the fit*: what fits score "
    "on average over seeds; with one seed the report does not claim to hold that.",
]


ACCURACY_NOTES = [
    f"{DRAWS:,} draws of right and wrong answers, in tasks of {ACCURACY_D[0]:.0%} to {ACCURACY_D[1]:.0%} accuracy. A "
    "task whose documents all agree (all right, or the same under both fits) has no interval; the rows *tasks with an "
    "interval* say how many of 100 have one, and the other rows are of these.",
]


def run(sections: list[str]) -> None:
    """A section for each skewness and for `accuracy`; none: for all of `SKEWNESS`, and for accuracy."""
    os.environ["OMP_NUM_THREADS"] = "1"
    RESULTS.mkdir(exist_ok=True)
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        for section in sections or [*(f"{value:g}" for value in SKEWNESS), ACCURACY]:
            work = accuracy_hits if section == ACCURACY else partial(draw, float(section))
            heading, notes = ("Accuracy", ACCURACY_NOTES) if section == ACCURACY else (f"Skewness {section}", NOTES)
            found = pool.map(work, range(DRAWS), chunksize=10)
            record(
                "coverage", "Coverage of 95% intervals", heading, table([hit for hits in found for hit in hits]), notes
            )


if __name__ == "__main__":
    start(run, __doc__, "SKEWNESS|accuracy")
