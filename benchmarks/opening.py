"""How large the HTML page of a large sweep is, and how soon a browser shows it.

    python benchmarks/opening.py

Fabricated results of 1,000 tasks and 100 trials (zero-shot, tau = 0, 97 values, tau = inf), each with 80 epochs, go
through `write_report`; headless Chromium then opens the page, five times each in a window of a desk and of a telephone.
Needs the `dev` extra and a Chromium on the path. Written to `benchmarks/results/opening.md` and `.json`.
"""

import json
import math
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from arguments import start
from playwright.sync_api import sync_playwright
from provenance import record

from bora_sweep.report import write_report
from bora_sweep.runs.results import write_table

TASKS, EPOCHS, ROUNDS = 1_000, 80, 5
TAUS = (None, 0.0, *np.geomspace(1, 1e5, 97).tolist(), math.inf)
DOCUMENTS = {"validation": 2, "test": 4}
WINDOWS = {"1,280 x 900": (1280, 900), "400 x 800": (400, 800)}
TOKENS = 40
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def write_run(run: Path) -> None:
    """Scores that are lowest at tau = 1,000; documents and tasks vary as much as fits do."""
    rng = np.random.default_rng(0)
    names = [f"customer {d:04d}, northern branch" for d in range(TASKS)]
    sizes_D = (4 + rng.lognormal(2, 0.8, TASKS)).astype(int)
    level_D = rng.normal(3, 0.3, TASKS)
    noise = {split: rng.normal(0, 0.3, (TASKS, count)) for split, count in DOCUMENTS.items()}
    for n, tau in enumerate(TAUS):
        above = 0.5 if tau is None else {0.0: 0.15, math.inf: 0.05}.get(tau) or 0.015 * (math.log10(tau) - 3) ** 2
        sizes = {"task": names, "split": "train", "num_documents": sizes_D, "num_tokens": sizes_D * TOKENS}
        scores, documents = [pd.DataFrame(sizes)], []
        for split, count in DOCUMENTS.items():
            nats_DN = TOKENS * (level_D[:, None] + above + noise[split] + rng.normal(0, 0.03, (TASKS, count)))
            told = {"split": split, "num_documents": count, "num_tokens": TOKENS * count, "nll_nats": nats_DN.sum(1)}
            scores.append(pd.DataFrame({"task": names, "distance_to_global": sizes_D**0.5} | told))
            ids = np.tile(np.arange(count), TASKS).astype(str)
            own = {"task": np.repeat(names, count), "split": split, "document_id": ids, "num_tokens": TOKENS}
            documents.append(pd.DataFrame(own | {"nll_nats": nats_DN.ravel()}))
        write_table(run, "task_scores", f"{n:03d}", pd.concat(scores).assign(tau=tau))
        write_table(run, "document_scores", f"{n:03d}", pd.concat(documents))
        _write_trial(run, f"{n:03d}", tau)


def _write_trial(run: Path, trial_id: str, tau: float | None) -> None:
    row = {"status": "finished", "method": "zero_shot" if tau is None else "map", "tau": tau, "seed": 0}
    row |= {"epochs": EPOCHS, "best_epoch": EPOCHS - 5, "train_seconds": 60.0, "train_tokens": 10**6, "lora_rank": 8}
    row |= {"learning_rate": 3e-3, "config_json": json.dumps({"prior": {"tau": tau}}), "device": "cpu: x86_64"}
    write_table(run, "trials", trial_id, [row])
    if tau is not None:
        curves = [
            {"epoch": epoch, "split": split, "nll_nats": 3e3 + 1e3 * math.exp(-epoch / 10), "num_tokens": 1_000}
            for epoch in range(EPOCHS + 1)
            for split in ("train", "validation")
        ]
        write_table(run, "curves", trial_id, curves)


def opened_ms(page: Path, window: tuple[int, int]) -> list[tuple[float, ...]]:
    """Milliseconds from the start of navigation to the tables, to the curve over tau, and to the last chart."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    read = "() => ['read', 'first', 'drawn'].map((name) => Number(document.documentElement.dataset[name]))"
    times = []
    with sync_playwright() as client:
        browser = client.chromium.launch(executable_path=path, args=FLAGS)
        for _ in range(ROUNDS):
            tab = browser.new_page(viewport={"width": window[0], "height": window[1]})
            tab.goto(page.as_uri())
            tab.wait_for_function("() => document.documentElement.dataset.drawn")
            times.append(tuple(tab.evaluate(read)))
            tab.close()
        browser.close()
    return times


def run() -> None:
    """A row for each window."""
    with tempfile.TemporaryDirectory() as folder:
        write_run(Path(folder))
        started = time.perf_counter()
        write_report(folder)
        taken, page = time.perf_counter() - started, Path(folder) / "report" / "index.html"
        rows = []
        for name, window in WINDOWS.items():
            read, first, drawn = zip(*opened_ms(page, window), strict=True)
            rows.append(
                {
                    "window": name,
                    "answer and tables, ms": statistics.median(read),
                    "curve over τ, ms": statistics.median(first),
                    "last chart, ms": statistics.median(drawn),
                    "fastest, ms": min(drawn),
                    "page, MB": page.stat().st_size / 1e6,
                    "report, s": taken,
                }
            )
    notes = [
        f"{TASKS:,} tasks, {len(TAUS)} trials; medians of {ROUNDS}, from the start of navigation, nothing cached. "
        "*Report*: `write_report`, all its files. "
        f"{os.cpu_count()} CPUs; load average {os.getloadavg()[0]:.1f} meanwhile."
    ]
    record("opening", "Opening the page of a large sweep", "headless Chromium", rows, notes)


if __name__ == "__main__":
    start(run, __doc__)
