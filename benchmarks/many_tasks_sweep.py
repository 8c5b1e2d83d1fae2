"""A sweep of three values of tau over 10,000 tasks of four short documents, with the bank on the host.

    python benchmarks/many_tasks_sweep.py FOLDER [key=value ...]

FOLDER is a small base model, such as an OPT of one million parameters. Each task draws its documents, of 12 to 20
words, from the words of the tokenizer, with favourites of its own. Runs `bora-sweep sweep` as a command, and adds up
the memory of its processes once a second. Written to `benchmarks/results/many_tasks_sweep.md` and `.json`.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from arguments import start
from provenance import record
from transformers import AutoTokenizer

from bora_sweep.runs.results import read_results

TASKS, DOCUMENTS, FAVOURITES = 10_000, 4, 40
SETTINGS = [
    "train.bank=host", "train.batch_size=256", "train.micro_batch_size=128", "train.tasks_per_batch=128",
    "train.max_epochs=2", "train.patience=2", "search.taus=[100,1000,10000]", "search.num_trials=0",
    "search.baselines=[independent,shared]", "model.max_tokens=24", "lora.rank=8", "ray.max_concurrent=1",
    "train.device=cpu", "lora.target_modules=null",
]  # fmt: skip


def write_corpus(path: Path, model: str) -> None:
    """The documents of all tasks."""
    rng = np.random.default_rng(0)
    vocabulary = AutoTokenizer.from_pretrained(model).get_vocab()
    words = sorted(word.lstrip("Ġ▁") for word in vocabulary if word[:1] in "Ġ▁" and word[1:].isalpha())
    frequency = 1 / np.arange(3, len(words) + 3)
    frequency /= frequency.sum()
    rows = []
    for task in range(TASKS):
        own = rng.choice(len(words), FAVOURITES)
        for _ in range(DOCUMENTS):
            length = rng.integers(12, 21)
            common = rng.choice(len(words), length, p=frequency)
            chosen = np.where(rng.random(length) < 0.5, rng.choice(own, length), common)
            rows.append((f"customer {task:05d}", " ".join(words[word] for word in chosen)))
    pd.DataFrame(rows, columns=["task", "text"]).to_parquet(path)


def memory_of(process: int) -> int:
    """Bytes of a process and all that it started, what they share counted once."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, parent = int(status.parent.name), int(status.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        children.setdefault(parent, []).append(number)
    total, open_ones = 0, [process]
    while open_ones:
        number = open_ones.pop()
        open_ones += children.get(number, [])
        try:
            lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def run(arguments: list[str]) -> None:
    """The table."""
    model, more = arguments[0], arguments[1:]
    folder = Path(tempfile.mkdtemp(prefix="many-tasks-"))
    try:
        write_corpus(folder / "customers.parquet", model)
        paths = [f"data.path={folder / 'customers.parquet'}", f"model.name={Path(model).absolute()}"]
        settings = [*paths, f"output={folder / 'run'}", *SETTINGS, *more]
        began, most = time.perf_counter(), 0
        sweep = subprocess.Popen([sys.executable, "-m", "bora_sweep.cli", "sweep", *settings])
        while sweep.poll() is None:
            most = max(most, memory_of(sweep.pid))
            time.sleep(1)
        seconds = time.perf_counter() - began
        trials = read_results(folder / "run").trials
        size = sum(file.stat().st_size for file in (folder / "run").rglob("*") if file.is_file())
        rows = [
            {
                "tau": row["tau"],
                "epochs": row["epochs"],
                "seconds of training": row["train_seconds"],
                "validation perplexity": row["validation_perplexity"],
                "test perplexity": row["test_perplexity"],
                "stopped by": row["stopped_by"],
            }
            for row in trials.sort_values("tau").to_dict("records")
        ]
        notes = [
            f"{TASKS:,} tasks of {DOCUMENTS} documents; {' '.join([*SETTINGS, *more])}.",
            f"Exit code {sweep.returncode}; {seconds:,.0f} s from the command to the report; {most / 2**30:.1f} GiB at "
            f"most, of all processes together; the run's folder has {size / 1e9:.2f} GB.",
        ]
        record("many_tasks_sweep", "A sweep over 10,000 tasks", "host", rows, notes)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    start(run, __doc__, metavar="FOLDER")
