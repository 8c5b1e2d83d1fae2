"""Fabricated results of runs whose best tau is known."""

import itertools
import math
from pathlib import Path

import numpy as np
from markdown_it import MarkdownIt

from bora_sweep.runs.results import perplexity, write_table

SIZES = {"ada": 40, "bo": 12, "cy": 25, "dee": 18, "eve": 60}
TAUS = (0.0, 100.0, 1_000.0, 10_000.0, math.inf)
HOSTILE = ["<script>alert(1)</script>", "a|b", "a_b_c", "$x$ and $y", "🙂 👩\u200d👧", "x" * 300, "**b** [l](u) `c`"]
HOSTILE += [
    "\\input{x}%#&~^{}",
    "[row",
    "new\nline\r| --- |",
    "\u202eright to left",
    "日本語",
    "  ",
    "=1+1",
    "\x07bell",
    "$\\frac{$",
]


def u_curve(tau: float) -> float:
    """Nats per token above the lowest, at tau = 1,000."""
    return {0.0: 0.13, math.inf: 0.04}.get(tau) or 0.015 * (math.log10(tau) - 3) ** 2


def write_trial(
    run: Path,
    tau: float | None,
    sizes: dict[str, int] = SIZES,
    seed: int = 0,
    nats: dict[str, float] | None = None,
    floor: float | None = 2.6,
    trial_id: str | None = None,
    **columns: object,
) -> None:
    """One finished trial: `nats` per token of each task on average, the same documents and noise for every trial."""
    trial_id = trial_id or f"{'zero_shot' if tau is None else f'tau={tau:g}'}-{seed}"
    tasks, documents, sums = [], [], {}
    for d, (task, size) in enumerate(sizes.items()):
        level = (nats or {}).get(task, 3.0 + 0.05 * d + (0.6 if tau is None else u_curve(tau))) + 0.002 * seed
        distance = size**0.5 if tau else 0.0
        for split, count in (("train", size), ("validation", max(2, size // 3)), ("test", max(3, size // 2))):
            rng = np.random.default_rng([d, count])
            tokens = rng.integers(20, 60, count)
            noise_of_seed = 0.03 * np.random.default_rng(seed).normal(size=count)
            nll_nats = tokens * (level + rng.normal(0, 0.2, count) + noise_of_seed)
            floor_nats = tokens * (math.nan if floor is None else floor)
            row = {"tau": tau, "task": task, "split": split, "num_documents": count, "num_tokens": tokens.sum()}
            if split != "train":
                row |= {"nll_nats": nll_nats.sum(), "perplexity": perplexity(nll_nats.sum(), tokens.sum())}
                row |= {"floor_nll_nats": floor_nats.sum(), "distance_to_global": distance}
                sums[split] = sums.get(split, 0) + np.array([nll_nats.sum(), tokens.sum()])
                for n in range(count):
                    scored = {"num_tokens": tokens[n], "nll_nats": nll_nats[n], "floor_nll_nats": floor_nats[n]}
                    documents.append({"task": task, "split": split, "document_id": str(n), **scored})
            tasks.append(row)
    write_table(run, "task_scores", trial_id, tasks)
    write_table(run, "document_scores", trial_id, documents)
    trial = {"status": "finished", "method": "zero_shot" if tau is None else "map", "tau": tau, "seed": seed}
    if tau is not None:
        trial |= {"learning_rate": 3e-3, "epochs": 30 + seed, "best_epoch": 25, "stopped_by": "patience"}
    trial |= {f"{split}_nll_nats": value[0] for split, value in sums.items()}
    trial |= {"train_seconds": 12.34, "tokens_per_second": 45_678.9, "parametrization": "noncentered", "lora_rank": 8}
    write_table(run, "trials", trial_id, [trial | columns])


def write_run(run: Path, taus: tuple[float | None, ...] = (None, *TAUS), **arguments: object) -> Path:
    for tau in taus:
        write_trial(run, tau, **arguments)  # type: ignore[arg-type]
    return run


def table_after(page: str, heading: str) -> list[list[str]]:
    """Cells of the first Markdown table under a heading, as a Markdown parser sees them."""
    tokens = MarkdownIt("commonmark").enable("table").parse(page[page.index(heading) :])
    rows: list[list[str]] = []
    for before, token in itertools.pairwise(tokens):
        if token.type == "tr_open":
            rows.append([])
        elif before.type in ("th_open", "td_open"):
            rows[-1].append("".join(child.content for child in token.children or [] if child.type == "text"))
        elif token.type == "table_close":
            break
    return rows
