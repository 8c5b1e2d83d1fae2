"""tau estimated from the training text alone, against the best tau on validation, for corpora of different similarity.

    python benchmarks/evidence.py

A shared fit of each of three embedded corpora gives the estimates by scores. The first corpus is also fitted at each
tau of a grid, for the best on validation and for the estimates by a diagonal Fisher information; and at the estimate by
scores. The fits run in one process per core, with one thread each. Written to `benchmarks/results/evidence.md`.
"""

import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from arguments import start
from evidence_estimators import laplace_log_evidence, tau_by_diagonal_evidence, tau_by_mackay
from provenance import RESULTS, provenance

from bora_sweep.config import load_config
from bora_sweep.data.corpus import load_corpus
from bora_sweep.data.tokens import tokenize
from bora_sweep.model.base import load_base, load_tokenizer
from bora_sweep.runs.results import perplexity
from bora_sweep.train.fit import fit
from bora_sweep.train.methods.tau_estimate import TauEstimate, curvature, tau_by_scores

EMBEDDED = str(Path(__file__).parents[1] / "conf" / "embedded.yaml")
SIMILARITIES = (0.1, 0.3, 0.5, 0.7, 0.9)
SEEDS = (0, 1, 2)
GRID = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
UNKNOWN = TauEstimate(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Cell:
    """The perplexities and estimates of one fit."""

    validation: float
    test: float
    by_scores: TauEstimate = UNKNOWN
    by_diagonal: TauEstimate = UNKNOWN
    by_mackay: float = math.nan
    log_evidence: float = math.nan


def fit_cell(similarity: float, seed: int, tau: float) -> Cell:
    """One fit and its estimates: by scores if it is shared, else by Laplace's method and MacKay's.

    Args:
        similarity: Of the embedded corpus's tasks.
        seed: Of the corpus.
        tau: Precision of the prior.
    """
    torch.set_num_threads(1)
    setting = [f"data.synthetic.similarity={similarity}", f"data.synthetic.seed={seed}", f"prior.tau={tau}"]
    config = load_config([EMBEDDED, "train.device=cpu", *setting])
    corpus = tokenize(load_corpus(config.data), load_tokenizer(config.model, config.data), config.model.max_tokens)
    base = load_base(config.model, config.data)
    fitted = fit(config, corpus, base)
    nats = {split: float(nll.sum()) for split, nll in fitted.nll_nats.items()}
    validation, test = (perplexity(nats[split], corpus.num_tokens(split)) for split in ("validation", "test"))
    at = curvature(config, corpus, base, fitted.theta_KP)
    if math.isinf(tau):
        diagonal = tau_by_diagonal_evidence(at.score_KP, at.fisher_KP)
        return Cell(validation, test, by_scores=tau_by_scores(at), by_diagonal=diagonal)
    delta_KP = fitted.theta_KP - fitted.mean_P
    evidence = laplace_log_evidence(tau, at, delta_KP).sum().item()
    return Cell(validation, test, by_mackay=tau_by_mackay(delta_KP, at.fisher_KP), log_evidence=evidence)


def estimates_table(shared: dict, grid: dict, chosen: dict) -> list[list[str]]:
    """Rows of the estimates by scores, the best tau on validation, and test perplexities of these and of tau = inf."""
    header = [*(f"by scores, corpus {seed}" for seed in SEEDS), "best on validation, corpus 0"]
    header += ["test perplexity at tau = inf", "at the estimate", "at the best on validation"]
    rows = [["similarity", *header]]
    for similarity in SIMILARITIES:
        best = min(GRID, key=lambda tau: grid[similarity, 0, tau].validation)
        cells = [interval_text(shared[similarity, seed].by_scores) for seed in SEEDS]
        tests = (shared[similarity, 0], chosen[similarity], grid[similarity, 0, best])
        rows.append([f"{similarity}", *cells, f"{best:,.0f}", *(f"{cell.test:.2f}" for cell in tests)])
    return rows


def diagonal_table(shared: dict, grid: dict) -> list[list[str]]:
    """Rows of the estimates by a diagonal Fisher information, on corpus 0."""
    mackay = (100.0, 1000.0)
    header = ["evidence from the shared fit", *(f"MacKay from the fit at {tau:,.0f}" for tau in mackay)]
    rows = [["similarity", *header, "best of the grid by Laplace's method"]]
    for similarity in SIMILARITIES:
        laplace = max(GRID, key=lambda tau: grid[similarity, 0, tau].log_evidence)
        cells = [f"{grid[similarity, 0, tau].by_mackay:,.0f}" for tau in mackay]
        rows.append([f"{similarity}", interval_text(shared[similarity, 0].by_diagonal), *cells, f"{laplace:,.0f}"])
    return rows


def interval_text(estimate: TauEstimate) -> str:
    """The estimate as `tau [low, high]`."""
    tau, low, high = ("inf" if math.isinf(t) else f"{t:,.0f}" for t in (estimate.tau, estimate.low, estimate.high))
    return f"{tau} [{low}, {high}]"


def as_markdown(rows: list[list[str]]) -> str:
    """The rows as a Markdown table; the first one is the header."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---:"] * len(rows[0]), *rows[1:]])


def run() -> None:
    """Run all fits, and write both tables."""
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:

        def fits(cells: list[tuple[float, int, float]]) -> dict[tuple[float, int, float], Cell]:
            return dict(zip(cells, pool.map(fit_cell, *zip(*cells, strict=True)), strict=True))

        cells = fits([(similarity, seed, math.inf) for seed in SEEDS for similarity in SIMILARITIES])
        shared = {(similarity, seed): cell for (similarity, seed, _), cell in cells.items()}
        grid = fits([(similarity, 0, tau) for tau in GRID for similarity in SIMILARITIES])
        at_estimate = fits([(similarity, 0, shared[similarity, 0].by_scores.tau) for similarity in SIMILARITIES])
    chosen = {similarity: cell for (similarity, _, _), cell in at_estimate.items()}
    tables = (as_markdown(estimates_table(shared, grid, chosen)), as_markdown(diagonal_table(shared, grid)))
    text = "\n\n".join(["# tau without a sweep", *tables, provenance()])
    print(text)
    (RESULTS / "evidence.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    start(run, __doc__)
