"""Fabricated results of runs whose best tau is known."""

import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from markdown_it import MarkdownIt

from bora_sweep.runs.results import perplexity, write_table

SIZES = {"ada": 40, "bo": 12, "cy": 25, "dee": 18, "eve": 60}
Sizes = Mapping[str, int | tuple[int, int, int]]
"""Training documents of each task; or those of training, validation and test, where 0 leaves a split out."""
SMALL = SIZES | {"fay": (2, 0, 0), "gil": (1, 0, 0), "hal": (3, 1, 0)}
"""Three tasks without test documents, two of them without any to score."""
TAUS = (0.0, 100.0, 1_000.0, 10_000.0, math.inf)
METRICS = ("accuracy", "rouge_l", "my_module:score")
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


def quality(tau: float | None, best: float = 1_000.0) -> float:
    """Expected accuracy and ROUGE-L: 0.8 at the tau `best`, less beside it and at the ends, 0.3 without training."""
    if tau is None:
        return 0.3
    return {0.0: 0.5, math.inf: 0.65}.get(tau) or 0.8 - 0.06 * (math.log10(tau) - math.log10(best)) ** 2


def scores_of(metric: str, expected: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """Scores of documents, of which some are hard under every fit."""
    hard, slope = rng.uniform(size=(2, count))
    if metric in ("accuracy", "exact_match"):
        return (hard < expected).astype(float)
    share = np.clip((0.8 + 0.4 * slope) * expected + 0.3 * (hard - 0.5), 0, 1)
    return share if metric == "rouge_l" else 40 * share - 50


def write_trial(
    run: Path,
    tau: float | None,
    sizes: Sizes = SIZES,
    seed: int = 0,
    nats: dict[str, float] | None = None,
    floor: float | None = 2.6,
    trial_id: str | None = None,
    metrics: tuple[str, ...] = (),
    metric_best: float = 1_000.0,
    own_noise: float = 0.0,
    **columns: object,
) -> None:
    """One finished trial: `nats` per token of each task on average, the same documents and noise for every trial.

    Args:
        run: Its folder.
        tau: None: the zero-shot model.
        sizes: Of the tasks.
        seed: Of the fit.
        nats: By task; without it they are lowest at tau = 1,000.
        floor: Nats per token of the true source.
        trial_id: Of the trial.
        metrics: Scored beside perplexity.
        metric_best: The tau at which scores are highest.
        own_noise: Standard deviation of a document's nats per token that this trial does not share with others.
        columns: Of `trials`.
    """
    trial_id = trial_id or f"{'zero_shot' if tau is None else f'tau={tau:g}'}-{seed}"
    tasks, documents, sums, predictions = [], [], {}, []
    for d, (task, given) in enumerate(sizes.items()):
        size, *scored = given if isinstance(given, tuple) else (given, max(2, given // 3), max(3, given // 2))
        level = (nats or {}).get(task, 3.0 + 0.05 * d + (0.6 if tau is None else u_curve(tau))) + 0.002 * seed
        distance = size**0.5 if tau else 0.0
        for split, count in zip(("train", "validation", "test"), (size, *scored), strict=True):
            if not count:
                continue
            rng = np.random.default_rng([d, count])
            tokens = rng.integers(20, 60, count)
            noise_of_seed = 0.03 * np.random.default_rng(seed).normal(size=count)
            own = own_noise * np.random.default_rng([d, count, *trial_id.encode()]).normal(size=count)
            nll_nats = tokens * (level + rng.normal(0, 0.2, count) + noise_of_seed + own)
            floor_nats = tokens * (math.nan if floor is None else floor)
            row = {"tau": tau, "task": task, "split": split, "num_documents": count, "num_tokens": tokens.sum()}
            if split != "train":
                row |= {"nll_nats": nll_nats.sum(), "perplexity": perplexity(nll_nats.sum(), tokens.sum())}
                row |= {"floor_nll_nats": floor_nats.sum(), "distance_to_global": distance}
                sums[split] = sums.get(split, 0) + np.array([nll_nats.sum(), tokens.sum()])
                for n in range(count):
                    values = {"num_tokens": tokens[n], "nll_nats": nll_nats[n], "floor_nll_nats": floor_nats[n]}
                    documents.append({"task": task, "split": split, "document_id": str(n), **values})
                means = {}
                for m, metric in enumerate(metrics):
                    drawn = np.random.default_rng([d, count, m])
                    scores = scores_of(metric, quality(tau, metric_best) - 0.01 * seed, count, drawn)
                    means[metric] = scores.mean()
                    for n, score in enumerate(scores):
                        texts = {"prediction": f"p{n}", "reference": f"r{n}", "score": score}
                        predictions.append(
                            {"task": task, "split": split, "document_id": str(n), "metric": metric} | texts
                        )
                row["metrics"] = json.dumps(means) if metrics else None
            tasks.append(row)
    write_table(run, "task_scores", trial_id, tasks)
    write_table(run, "document_scores", trial_id, documents)
    trial = {"status": "finished", "method": "zero_shot" if tau is None else "map", "tau": tau, "seed": seed}
    if tau is not None:
        trial |= {"learning_rate": 3e-3, "epochs": 30 + seed, "best_epoch": 25, "stopped_by": "patience"}
    trial |= {f"{split}_nll_nats": value[0] for split, value in sums.items()}
    if metrics:
        write_table(run, "predictions", trial_id, predictions)
        for split in ("validation", "test"):
            scores = [(row["metric"], row["score"]) for row in predictions if row["split"] == split]
            means = {metric: float(np.mean([score for name, score in scores if name == metric])) for metric in metrics}
            trial[f"{split}_metrics"] = json.dumps(means)
        trial["search_objective"] = "perplexity"
    trial |= {"train_seconds": 12.34, "tokens_per_second": 45_678.9, "parametrization": "noncentered", "lora_rank": 8}
    write_table(run, "trials", trial_id, [trial | columns])


def write_run(run: Path, taus: tuple[float | None, ...] = (None, *TAUS), **arguments: object) -> Path:
    for tau in taus:
        write_trial(run, tau, **arguments)  # type: ignore[arg-type]
    return run


def paragraph(page: str, begins: str = "**τ = ") -> str:
    """The first paragraph of a report that begins so: the answer with tau, or what is recommended by `**Serve `."""
    return next(text for text in page.split("\n\n") if text.startswith(begins))


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
