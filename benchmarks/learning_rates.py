"""`train.learning_rate=auto` beside full fits on a grid of rates, at tau = inf.

    python benchmarks/learning_rates.py [CORPUS …]

CORPUS: `embedded`, `speakers` or `smollm2` (benchmarks/rate_fits.py); left out: all. For each seed the rate that the
range test chooses, a full fit at that rate, and full fits on a grid of factor 2. Each cell is kept in
`benchmarks/results/learning_rates.json`; the table of those that are there goes to `learning_rates.md`.
"""

from collections.abc import Sequence
from typing import Any

from arguments import start
from provenance import RESULTS, provenance
from rate_fits import CORPORA, Kept, fitted, loaded, settings_of

from bora_sweep.config import with_values
from bora_sweep.trials.rate_test import choose_rate

GRIDS = {
    "embedded": [1.2e-3 * 2**k for k in range(7)],
    "speakers": [7.5e-4 * 2**k for k in range(7)],
    "smollm2": [7.5e-4 * 2**k for k in range(4)],
}
SEEDS = {"embedded": (0, 1, 2), "speakers": (0,), "smollm2": (0,)}
HEADER = [
    "corpus", "seed", "chosen", "best of the grid on validation", "ratio", "test perplexity at the chosen rate",
    "at the best of the grid", "difference", "validation at both", "rates of the grid within 0.5% on validation",
    "tokens of the range test over those of the fit at its rate",
]  # fmt: skip


def grid_cell(kept: Kept, corpus: str, seed: int, rate: float) -> dict[str, Any]:
    """A full fit at a rate.

    Args:
        kept: The cells.
        corpus: Of `CORPORA`.
        seed: As for `settings_of`.
        rate: The learning rate.
    """
    config = with_values(settings_of(corpus, seed), train={"learning_rate": rate})
    return kept.get((corpus, seed, rate), lambda: fitted(config, *loaded(corpus, seed)))


def chosen_cell(kept: Kept, corpus: str, seed: int) -> dict[str, Any]:
    """What the range test chose.

    Args:
        kept: The cells.
        corpus: Of `CORPORA`.
        seed: As for `settings_of`.
    """

    def choose() -> dict[str, Any]:
        found = choose_rate(settings_of(corpus, seed), *loaded(corpus, seed))
        return {"rate": found.rate, "tokens": found.num_tokens, "text": str(found)}

    return kept.get((corpus, seed, "auto"), choose)


def row(kept: Kept, corpus: str, seed: int) -> list[str]:
    """A row of the table; its cells are made where they are missing.

    Args:
        kept: The cells.
        corpus: Of `CORPORA`.
        seed: As for `settings_of`.
    """
    chosen = chosen_cell(kept, corpus, seed)
    at_chosen = grid_cell(kept, corpus, seed, chosen["rate"])
    grid = {rate: grid_cell(kept, corpus, seed, rate) for rate in GRIDS[corpus]}
    best = min(grid, key=lambda rate: grid[rate]["validation"])
    near = [rate for rate, cell in grid.items() if cell["validation"] <= 1.005 * grid[best]["validation"]]
    tests = at_chosen["test"], grid[best]["test"]
    return [
        corpus, str(seed), f"{chosen['rate']:.2g}", f"{best:.2g}", f"{chosen['rate'] / best:.2f}",
        f"{tests[0]:.2f}", f"{tests[1]:.2f}", f"{tests[0] / tests[1] - 1:+.2%}",
        f"{at_chosen['validation']:.2f}, {grid[best]['validation']:.2f}", ", ".join(f"{rate:.2g}" for rate in near),
        f"{chosen['tokens'] / at_chosen['tokens']:.2f}",
    ]  # fmt: skip


def run(corpora: Sequence[str]) -> None:
    """Make the cells of these corpora, then the table of all that are complete."""
    kept = Kept("learning_rates")
    for corpus in corpora or SEEDS:
        for seed in SEEDS[corpus]:
            row(kept, corpus, seed)
    write_table(kept)


def write_table(kept: Kept) -> None:
    """The table of the rows whose cells are all there."""
    rows = [row(kept, corpus, seed) for corpus in SEEDS for seed in SEEDS[corpus] if is_complete(kept, corpus, seed)]
    lines = ["| " + " | ".join(cells) + " |" for cells in [HEADER, ["---:"] * len(HEADER), *rows]]
    about = [f"`{corpus}`: `{' '.join(CORPORA[corpus]).replace(str(RESULTS.parents[1]), '.')}`" for corpus in SEEDS]
    text = "\n\n".join(["# The learning rate that is chosen", "\n".join(lines), *about, provenance()])
    print(text)
    (RESULTS / "learning_rates.md").write_text(f"{text}\n", encoding="utf-8")


def is_complete(kept: Kept, corpus: str, seed: int) -> bool:
    """Whether all cells of a row are there."""
    chosen = kept.cells.get(f"{corpus} {seed} auto")
    rates = [] if chosen is None else [chosen["rate"], *GRIDS[corpus]]
    return bool(rates) and all(f"{corpus} {seed} {rate:g}" in kept.cells for rate in rates)


if __name__ == "__main__":
    start(run, __doc__, "CORPUS", choices=SEEDS)
