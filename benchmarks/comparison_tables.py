"""The tables of comparison.py: the cells that are done, and test perplexities with paired intervals.

N documents, J fits, M methods.
"""

import json
from typing import Any

import numpy as np
from provenance import RESULTS, provenance

from bora_sweep.config import Config
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.report.stats.bootstrap import Bootstrap, paired_bootstrap
from bora_sweep.report.stats.document_scores import DocumentScores
from bora_sweep.report.stats.interval import Interval

KEPT = RESULTS / "comparison.json"
NUM_SEEDS = 3
BORA, GRID = "bora", "bora "
METHODS = {
    BORA: "BoRA, τ best on validation",
    "learn": "BoRA, τ learnt in the fit",
    "independent": "one adapter per task (τ = 0)",
    "shared": "one adapter for all (τ = ∞)",
    "fine_tuned": "shared, then fine-tuned per task",
    "fedsa": "FedSA: A shared, B per task",
    "pfedme": "pFedMe, at the same τ as BoRA",
    "shared_wide": "one wide adapter for all",
    "task_prompt": "one adapter, with the task's name before each text",
    "average": "merged: average",
    "ties": "merged: TIES",
    "dare": "merged: DARE",
    "zero_shot": "the base as it is",
}
PER_TASK = (BORA, "learn", "independent", "fine_tuned", "fedsa", "pfedme")
"""Methods that serve an adapter for each task; the others serve one, and zero-shot none."""


class Cells:
    """What is done of one corpus, in `KEPT`.

    Args:
        corpus: Its name.
        about: What was fitted, with the test documents' tasks and tokens; cells of something else are dropped.
        made: The origin of the figures.
    """

    def __init__(self, corpus: str, about: dict[str, Any], made: dict[str, str]) -> None:
        self.corpus = corpus
        kept = _read()
        if kept.get(corpus, {}).get("about") != about:
            kept[corpus] = {"about": about, "cells": {}}
        kept[corpus]["origin"] = made
        self.cells = kept[corpus]["cells"]
        _write(kept)

    def has(self, group: str, seed: int) -> bool:
        """Whether the cell is done; the base as it is has one seed."""
        return f"{group}/{0 if group == 'zero_shot' else seed}" in self.cells

    def add(self, group: str, seed: int, scores: dict[str, dict]) -> None:
        """Keep a cell, with what was computed beside it."""
        self.cells |= {f"{method}/{seed}": found for method, found in scores.items()}
        kept = _read()
        kept[self.corpus]["cells"] = self.cells
        _write(kept)
        for method, found in scores.items():
            brief = {key: value for key, value in found.items() if key != "test_nats"}
            print(f"{self.corpus} {method}/{seed}: {brief}", flush=True)
        assert self.has(group, seed)

    def best_tau(self, seed: int) -> float:
        """The tau of the grid that is best on this seed's validation."""
        return float(_best_of_grid(self.cells, seed)["tau"])


def about_corpus(corpus: TokenizedCorpus, config: Config, wanted_rank: int) -> dict[str, Any]:
    """What all fits of a corpus have in common, and its test documents."""
    test, train, rank = corpus.documents.iloc[corpus.split("test")], config.train, config.search.wide_rank
    bounded = "" if rank == wanted_rank else f" (bounded: as many parameters as all tasks' would be rank {wanted_rank})"
    counts = ", ".join(
        f"{len(corpus.split(split)):,} documents ({corpus.num_tokens(split):,} tokens) to {verb}"
        for split, verb in (("train", "train on"), ("validation", "validate"), ("test", "test"))
    )
    return {
        "text": f"{corpus.num_tasks} tasks: {counts}; at most {config.model.max_tokens} tokens each. All fits: rank "
        f"{config.lora.rank}, learning rate {train.learning_rate:g}, batches of {train.batch_size}, at most "
        f"{train.max_epochs} epochs, patience {train.patience}. The wide adapter has rank {rank}{bounded}.",
        "tasks": list(corpus.tasks),
        "test_tasks": test["task"].tolist(),
        "test_tokens": test["num_tokens"].tolist(),
    }


def write_tables() -> None:
    """Write the Markdown of all that is done."""
    parts = ["# Every method on the same text and budget"]
    for corpus, kept in _read().items():
        if kept["cells"]:
            parts += [f"## {corpus}", kept["about"]["text"], *_table(kept), provenance(kept["origin"])]
    (RESULTS / "comparison.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _table(kept: dict[str, Any]) -> list[str]:
    """The table of a corpus, and what is not done."""
    cells = kept["cells"]
    found = {method: _fits_of(cells, method) for method in METHODS}
    done = [method for method, fits in found.items() if len(fits) == (1 if method == "zero_shot" else NUM_SEEDS)]
    missing = [
        f"{METHODS[method]} ({len(found[method])} of {NUM_SEEDS} seeds)" for method in METHODS if method not in done
    ]
    notes = [f"Not done: {'; '.join(missing)}."] if missing else []
    if BORA not in done:
        return notes
    bootstrap = _bootstrap(kept["about"], [found[method] for method in done])
    reference = done.index(BORA)
    lines = [
        ["method", "adapters", "validation", "test [95%]", "test beside BoRA [95%]", "tokens trained on", "τ"],
        ["---", *["---:"] * 6],
    ]
    for m in sorted(range(len(done)), key=lambda m: bootstrap.mean_M[m]):
        method, fits = done[m], found[done[m]]
        adapters = len(kept["about"]["tasks"]) if method in PER_TASK else 0 if method == "zero_shot" else 1
        beside = "" if m == reference else _percent(bootstrap.difference(m, reference))
        tokens = sum(_tokens(cells, method, seed, one) for seed, one in fits.items()) / len(fits)
        taus = ", ".join(fit["tau"] for fit in fits.values()) if method in (BORA, "learn", "pfedme") else ""
        validation = float(np.mean([fit["validation"] for fit in fits.values()]))
        lines.append(
            [
                METHODS[method],
                str(adapters),
                f"{validation:.1f}",
                _level(bootstrap.level(m)),
                beside,
                f"{tokens:,.0f}",
                taus,
            ]
        )
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return [
        table,
        f"Means of {NUM_SEEDS} seeds; perplexities. Intervals are over test documents within tasks, paired, and over "
        "seeds. Above 0%: worse than BoRA. Tokens: of one seed, with the fits that a method starts from or chooses "
        "among. τ: of each seed.",
        *notes,
    ]


def _fits_of(cells: dict[str, dict], method: str) -> dict[int, dict]:
    """The fits of a method by seed."""
    if method == BORA:
        return {seed: _best_of_grid(cells, seed) for seed in range(NUM_SEEDS) if _grid(cells, seed)}
    return {seed: cells[f"{method}/{seed}"] for seed in range(NUM_SEEDS) if f"{method}/{seed}" in cells}


def _grid(cells: dict[str, dict], seed: int) -> list[dict]:
    """The fits of BoRA with a seed."""
    return [fit for name, fit in cells.items() if name.startswith(GRID) and name.endswith(f"/{seed}")]


def _best_of_grid(cells: dict[str, dict], seed: int) -> dict:
    return min(_grid(cells, seed), key=lambda fit: fit["validation"])


def _tokens(cells: dict[str, dict], method: str, seed: int, fit: dict) -> int:
    """Tokens that were trained on for a method: of BoRA all of its grid, of pFedMe that grid too."""
    if method not in (BORA, "pfedme"):
        return fit["train_tokens"]
    own = fit["train_tokens"] if method == "pfedme" else 0
    return own + sum(each["train_tokens"] for each in _grid(cells, seed))


def _bootstrap(about: dict[str, Any], methods: list[dict[int, dict]]) -> Bootstrap:
    """The paired bootstrap over test documents of the methods, each with its seeds."""
    fits = [(m, seed, fit) for m, of_seed in enumerate(methods) for seed, fit in of_seed.items()]
    order_N = np.argsort(about["test_tasks"], kind="stable")
    return paired_bootstrap(
        DocumentScores(
            task_N=np.array([about["tasks"][task] for task in about["test_tasks"]], dtype=object)[order_N],
            weight_N=np.array(about["test_tokens"], dtype=float)[order_N],
            value_NJ=np.array([fit["test_nats"] for _, _, fit in fits]).T[order_N],
            setting_J=np.array([m for m, _, _ in fits]),
            seed_J=np.array([np.nan if len(methods[m]) == 1 else seed for m, seed, _ in fits], dtype=float),
        )
    )


def _level(interval: Interval) -> str:
    return f"{interval.estimate:.1f} [{interval.low:.1f}, {interval.high:.1f}]"


def _percent(interval: Interval) -> str:
    return f"{interval.estimate:+.1%} [{interval.low:+.1%}, {interval.high:+.1%}]"


def _read() -> dict[str, Any]:
    return json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}


def _write(kept: dict[str, Any]) -> None:
    """Write the cells, so that a cut-off leaves the file before or the file after."""
    part = KEPT.with_suffix(".part")
    part.write_text(json.dumps(kept, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(KEPT)
