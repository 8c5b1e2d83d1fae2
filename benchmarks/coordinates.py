"""Test perplexity over tau in both coordinate systems and with both solvers: which one a single learning rate serves.

    python benchmarks/coordinates.py data.path=… model.name=…

The defaults are those of the committed table: 14 tasks by name, 64 tokens, rank 8 on q_proj and v_proj, one learning
rate of 3e-3, at most 25 epochs. The fits run in as many processes as there are cores, a thread each. What is done is
kept in `runs/coordinates.json`, so that a second start goes on where the first was cut off.
"""

import json
import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from arguments import start
from provenance import RESULTS, provenance

from bora_sweep.config import Config, load_config
from bora_sweep.data.corpus import load_corpus
from bora_sweep.data.tokens import tokenize
from bora_sweep.model.base import load_base, load_tokenizer
from bora_sweep.runs.results import perplexity
from bora_sweep.train.fit import fit

COMMON = [
    "data.max_tasks=14",
    "data.seed=2",  # a test split as hard for the base model as the whole corpus, 337 both (at seed 0: 321)
    "model.max_tokens=64",
    "lora.rank=8",
    "lora.target_modules=null",
    "train.learning_rate=3e-3",
    "train.max_epochs=25",
    "train.device=cpu",
]
CENTERED = "prior.parametrization=centered"
SEEDS = range(3)
MEAN_OF_SEEDS = "centered, same learning rate, mean of 3 seeds"  # one seed cannot tell its two lowest values apart
ROWS = {
    "noncentered, AdamW": ["train.solver=adamw"],
    "noncentered, proximal": ["train.solver=proximal"],
    "centered, same learning rate": [CENTERED],
    "centered, learning rate 3e-5 tau": [CENTERED, "train.lr_per_tau=3e-5"],
    MEAN_OF_SEEDS: [CENTERED],
}
CELLS = [
    *(("noncentered, AdamW", tau) for tau in (0, 10, 100, 1e3, 1e4, 1e6)),
    *(("noncentered, proximal", tau) for tau in (10, 100, 1e3)),
    *(("centered, same learning rate", tau) for tau in (0, 100, 1e3)),
    *(("noncentered, proximal", tau) for tau in (1e4, 1e6, math.inf)),
    ("centered, same learning rate", 1e6),
    *(("centered, learning rate 3e-5 tau", tau) for tau in (10, 1e3, 1e4)),
    *((MEAN_OF_SEEDS, tau) for tau in (100, 1e3)),
]
TAUS = sorted({tau for _, tau in CELLS})
KEPT = Path("runs/coordinates.json")


def fit_cell(row: str, tau: float, settings: list[str]) -> float:
    """Test perplexity of one fit, or the mean of several that differ in the seed alone."""
    torch.set_num_threads(1)
    seeds = SEEDS if row == MEAN_OF_SEEDS else SEEDS[:1]
    return sum(fit_once(row, tau, [*settings, f"train.seed={seed}"]) for seed in seeds) / len(seeds)


def fit_once(row: str, tau: float, settings: list[str]) -> float:
    """Test perplexity of one fit."""
    config: Config = load_config([*COMMON, *ROWS[row], f"prior.tau={tau}", *settings])
    corpus = tokenize(load_corpus(config.data), load_tokenizer(config.model, config.data), config.model.max_tokens)
    done = fit(config, corpus, load_base(config.model, config.data))
    return perplexity(float(done.nll_nats["test"].sum()), corpus.num_tokens("test"))


def as_markdown(done: dict[str, float]) -> str:
    """Rows are coordinates and solvers, columns values of tau."""
    lines = [["tau", *("inf" if math.isinf(tau) else f"{tau:,.0f}" for tau in TAUS)], ["---"] * (len(TAUS) + 1)]
    for row in ROWS:
        cells = (done.get(f"{row}, tau={tau:g}") for tau in TAUS)
        lines.append([row, *("" if cell is None else f"{cell:.1f}" for cell in cells)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def run(settings: list[str]) -> None:
    """Every cell that is not kept yet, then the table."""
    KEPT.parent.mkdir(exist_ok=True)
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    done = kept.setdefault(" ".join(settings), {})
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        wanted = {f"{row}, tau={tau:g}": (row, tau) for row, tau in CELLS}
        futures = {pool.submit(fit_cell, *cell, settings): name for name, cell in wanted.items() if name not in done}
        for future in as_completed(futures):
            done[futures[future]] = future.result()
            print(f"{futures[future]}: {future.result():.1f}", flush=True)
            KEPT.write_text(json.dumps(kept))
    text = f"# Test perplexity by coordinates and solver\n\n{as_markdown(done)}\n\n{provenance()}\n"
    (RESULTS / "coordinates.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    start(run, __doc__, "key=value")
