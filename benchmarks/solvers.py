"""Epochs to converge, and what is reached, over tau for every solver: which one to take as the default.

    python benchmarks/solvers.py [key=value …]

By default on the embedded corpus, one learning rate for all, until validation no longer improves. The fits run in as
many processes as there are cores, a thread each.
"""

import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from arguments import start
from provenance import RESULTS, provenance

from bora_sweep.config import load_config
from bora_sweep.data.corpus import load_corpus
from bora_sweep.data.tokens import tokenize
from bora_sweep.model.base import load_base, load_tokenizer
from bora_sweep.runs.results import perplexity
from bora_sweep.train.fit import fit

EMBEDDED = str(Path(__file__).resolve().parents[1] / "conf" / "embedded.yaml")
ROWS = [
    (parametrization, solver, update)
    for parametrization, solver in (("noncentered", "proximal"), ("noncentered", "adamw"), ("centered", "adamw"))
    for update in ("gradient", "mean")
]
TAUS = [1e-3, 1.0, 100.0, 1e4, 1e6, 1e9]


def fit_cell(row: tuple[str, str, str], tau: float, settings: list[str]) -> str:
    """`epochs (best): test perplexity` of one fit."""
    torch.set_num_threads(1)
    parametrization, solver, update = row
    own = [f"prior.parametrization={parametrization}", f"train.solver={solver}", f"train.global_update={update}"]
    config = load_config([EMBEDDED, "train.device=cpu", *settings, *own, f"prior.tau={tau}"])
    corpus = tokenize(load_corpus(config.data), load_tokenizer(config.model, config.data), config.model.max_tokens)
    done = fit(config, corpus, load_base(config.model, config.data))
    reached = perplexity(float(done.nll_nats["test"].sum()), corpus.num_tokens("test"))
    return f"{done.state.epoch} ({done.state.best_epoch}): {reached:.2f}"


def run(settings: list[str]) -> None:
    """Every cell, and the table."""
    config = load_config([EMBEDDED, *settings])
    load_base(config.model, config.data)  # made once, before the processes start
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        cells = {(row, tau): pool.submit(fit_cell, row, tau, settings) for row in ROWS for tau in TAUS}
        ends = {tau: pool.submit(fit_cell, ROWS[0], tau, settings) for tau in (0.0, math.inf)}
        lines = [["coordinates", "solver", "Theta by", *(f"tau = {tau:g}" for tau in TAUS)], ["---"] * (3 + len(TAUS))]
        for row in ROWS:
            lines.append([*row, *(cells[row, tau].result() for tau in TAUS)])
            print("  ".join(lines[-1]), flush=True)
        told = "; ".join(f"tau = {tau:g}: {end.result()}" for tau, end in ends.items())
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    text = (
        "# Epochs to converge over tau, by coordinates and solver\n\nCells: epochs (best epoch): test perplexity."
        f"\n\n{table}\n\nThe ends, exact: {told}.\n\n{provenance()}\n"
    )
    print(text)
    (RESULTS / "solvers.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    start(run, __doc__, "key=value")
