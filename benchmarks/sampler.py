"""How near to the best tau each of Optuna's samplers comes, in few trials, two of them running at once.

    python benchmarks/sampler.py

The objective is a bowl over log10 tau whose minimum and noise are drawn anew for each repetition; its depth is that of
the embedded sweep's, some hundredths of a nat per token. Written to `benchmarks/results/sampler.md`.
"""

import math
from collections.abc import Callable

import numpy as np
from arguments import start
from provenance import RESULTS, provenance

from bora_sweep.config import load_config
from bora_sweep.tune.points import Point
from bora_sweep.tune.search import TauSearch

REPETITIONS, NOISE_NATS = 30, 0.002


def bowl(minimum: float, rng: np.random.Generator) -> Callable[[Point], float]:
    """Nats per token over tau: flat beyond two and a half decades, as the ends of a sweep are."""

    def objective(point: Point) -> float:
        if point.tau in (0.0, math.inf):
            return 0.2
        return excess(math.log10(point.tau) - minimum) + rng.normal(0, NOISE_NATS)

    return objective


def excess(decades: float) -> float:
    """Nats per token above the minimum."""
    return 0.02 * min(abs(decades), 2.5) ** 1.7


def search(sampler: str, num_trials: int, objective: Callable[[Point], float], seed: int) -> float:
    """The tau that a search ends with."""
    settings = [f"search.sampler={sampler}", f"search.num_trials={num_trials}", f"train.seed={seed}"]
    searcher = TauSearch(load_config(settings), {})
    running, done = [], []
    while True:
        while len(running) < 2:
            suggested = searcher.suggest(str(len(done) + len(running)))
            if not isinstance(suggested, dict):
                break
            running.append((str(len(done) + len(running)), suggested["fits"][0]))
        if not running:
            return min((value, point.tau) for value, point in done if 0 < point.tau < math.inf)[1]
        trial_id, fit = running.pop(0)
        point = Point(**fit["point"])
        done.append((objective(point), point))
        searcher.on_trial_complete(trial_id, {f"objectives/{fit['trial_id']}": done[-1][0]})


def run() -> None:
    """The table."""
    lines = ["| sampler | trials | decades from the best | nats per token above it |", "| --- | ---: | ---: | ---: |"]
    for sampler in ("gp", "tpe", "random"):
        for num_trials in (8, 12):
            rng = np.random.default_rng(0)
            away = []
            for seed in range(REPETITIONS):
                minimum = rng.uniform(1, 4)
                tau = search(sampler, num_trials, bowl(minimum, rng), 1000 * seed)
                away.append(abs(math.log10(tau) - minimum))
            nats = np.mean([excess(decades) for decades in away])
            lines.append(f"| {sampler} | {num_trials} | {np.mean(away):.3f} | {nats:.5f} |")
            print(lines[-1], flush=True)
    text = "\n".join(["# Samplers over log tau", "", *lines, "", provenance(), ""])
    (RESULTS / "sampler.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    start(run, __doc__)
