"""Test perplexity over tau in both coordinate systems and with both solvers: which one a single learning rate serves.

    python benchmarks/coordinates.py data.path=… model.name=…

The defaults are those of the committed table: 14 tasks by name, 64 tokens, rank 8 on q_proj and v_proj, one learning
rate of 3e-3, at most 25 epochs. Each variant is an ordinary sweep over listed values of tau, in `runs/coordinates-*`; a
second start goes on where the first was cut off. After each, the table is in `benchmarks/results/coordinates.md`.
"""

import math
import sys
from pathlib import Path

import pandas as pd
from provenance import RESULTS, provenance

from bora_sweep.cli import main
from bora_sweep.results import read_results

COMMON = [
    "data.max_tasks=14",
    "data.seed=8",  # a test split about as hard for the base model as the corpus: 347 against 337 (at seed 0: 321)
    "model.max_tokens=64",
    "lora.rank=8",
    "train.learning_rate=3e-3",
    "train.max_epochs=25",
    "search.num_trials=0",
]
CENTERED = "prior.parametrization=centered"
VARIANTS = {
    "noncentered, proximal": ["train.solver=proximal", "search.taus=[10,100,1e3,1e4,1e6]"],
    "noncentered, AdamW": ["train.solver=adamw", "search.taus=[10,100,1e3,1e4,1e6]"],
    "centered, same learning rate": [CENTERED, "search.taus=[100,1e3,1e6]"],
    "centered, learning rate 3e-5 tau": [CENTERED, "train.lr_per_tau=3e-5", "search.taus=[10,1e3,1e4]"],
}


def run_variant(name: str, settings: list[str]) -> pd.Series:
    """Test perplexity by tau of one sweep, made or completed."""
    run = Path("runs") / f"coordinates-{name.replace(', ', '-').replace(' ', '_')}"
    resume = ["--resume"] if (run / "config.yaml").exists() else []
    code = main(["sweep", *resume, *COMMON, *VARIANTS[name], *settings, f"output={run}"])
    if code:
        sys.exit(code)
    trials = read_results(run).trials.query("method == 'map'")
    return pd.Series(trials["test_perplexity"].to_numpy(), index=trials["tau"].to_numpy(), name=name)


def as_markdown(table: pd.DataFrame) -> str:
    """Rows are variants, columns values of tau."""
    heads = ["tau", *("inf" if math.isinf(tau) else f"{tau:,.0f}" for tau in table.columns)]
    rows = [[name, *("" if math.isnan(v) else f"{v:.1f}" for v in values)] for name, *values in table.itertuples()]
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *rows])


def run(settings: list[str]) -> None:
    """Each variant, and the table so far."""
    done = []
    for name in VARIANTS:
        done.append(run_variant(name, settings))
        table = as_markdown(pd.DataFrame(done).sort_index(axis=1))
        text = f"# Test perplexity by coordinates and solver\n\n{table}\n\n{provenance()}\n"
        (RESULTS / "coordinates.md").write_text(text, encoding="utf-8")
        print(text, flush=True)


if __name__ == "__main__":
    run(sys.argv[1:])
