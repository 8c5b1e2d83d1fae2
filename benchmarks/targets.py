"""Adapters on all linear layers beside adapters on q and v, with equally many parameters.

    python benchmarks/targets.py [CORPUS …]

CORPUS: `few_speakers` or `smollm2` (benchmarks/rate_fits.py); left out: both. At each tau both are fitted at several
rates, of which validation chooses. Each cell is kept in `benchmarks/results/targets.json`; the
table of those that are there goes to `targets.md`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from arguments import start
from provenance import RESULTS, provenance
from rate_fits import CORPORA, Kept, fitted, loaded, settings_of

from bora_sweep.config import with_values

Q_V, ALL = ["q_proj", "v_proj"], "all-linear"


@dataclass(frozen=True)
class Pair:
    """Adapters with equally many parameters."""

    q_v: int
    """Rank on q and v."""
    all_linear: int
    """Rank on all linear layers."""
    taus: tuple[float, ...] = ()
    """Finite values of tau."""


RATES = {"smollm2": (7.5e-4, 1.5e-3, 3e-3), "few_speakers": (6e-3, 1.2e-2, 2.4e-2)}
PAIRS = {
    "few_speakers": (Pair(9, 2, (1e3, 1e4)), Pair(36, 8)),
    "smollm2": (Pair(16, 3, (1e3,)),),
}
SEEDS = {"few_speakers": (0, 1), "smollm2": (0, 1, 2)}
HEADER = ["corpus", "seed", "tau", "adapters at", "rank", "parameters", "rate", "validation", "test", "epochs"]


def cell(kept: Kept, corpus: str, seed: int, targets: Any, rank: int, tau: float, rate: float) -> dict[str, Any]:
    """One fit.

    Args:
        kept: The cells.
        corpus: Of `CORPORA`.
        seed: As for `settings_of`.
        targets: `lora.target_modules`.
        rank: `lora.rank`.
        tau: Precision of the prior.
        rate: The learning rate.
    """
    lora = {"target_modules": targets, "rank": rank, "alpha": None}
    config = with_values(settings_of(corpus, seed), lora=lora, prior={"tau": tau}, train={"learning_rate": rate})
    name = targets if targets == ALL else "q_v"
    return kept.get((corpus, seed, name, rank, tau, rate), lambda: fitted(config, *loaded(corpus, seed)))


def rows_of(kept: Kept, corpus: str, seed: int, pair: Pair) -> list[list[str]]:
    """The rows of a pair: both targets at each tau, each at the rate that is best on validation.

    Args:
        kept: The cells; those that are missing are made.
        corpus: Of `CORPORA`.
        seed: As for `settings_of`.
        pair: What is compared.
    """
    rows = []
    for tau in (inf, *pair.taus):
        for targets, rank in ((Q_V, pair.q_v), (ALL, pair.all_linear)):
            at = {rate: cell(kept, corpus, seed, targets, rank, tau, rate) for rate in RATES[corpus]}
            rate, found = min(at.items(), key=lambda item: item[1]["validation"])
            name = targets if targets == ALL else "q, v"
            of_fit = [f"{found['parameters']:,}", f"{rate:.2g}", f"{found['validation']:.2f}", f"{found['test']:.2f}"]
            rows.append([corpus, str(seed), f"{tau:g}", name, str(rank), *of_fit, str(found["epochs"])])
    return rows


def run(corpora: Sequence[str]) -> None:
    """Make the cells of these corpora, and the table of all that have some."""
    kept = Kept("targets")
    done = [corpus for corpus in RATES if corpus in (corpora or RATES) or any(corpus in name for name in kept.cells)]
    rows = [
        row
        for corpus in done
        for s in SEEDS[corpus]
        for pair in PAIRS[corpus]
        for row in rows_of(kept, corpus, s, pair)
    ]
    lines = ["| " + " | ".join(cells) + " |" for cells in [HEADER, ["---:"] * len(HEADER), *rows]]
    about = [f"`{corpus}`: `{' '.join(CORPORA[corpus])}`" for corpus in done]
    text = "\n\n".join(["# All linear layers or q and v", "\n".join(lines), *about, provenance()])
    print(text)
    (RESULTS / "targets.md").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    start(run, __doc__, "CORPUS", choices=RATES)
