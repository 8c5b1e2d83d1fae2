"""Accuracy over tau: which of four continuations is the speaker's own, on the embedded family of languages.

    python benchmarks/continuations.py

Each document of the embedded corpus is cut in half. The first half is the prompt, the second the answer. The other
candidates are second halves by other speakers. Two sweeps in `runs/answers-accuracy` and `runs/answers-perplexity`,
which differ by `search.objective` alone; some minutes each on two cores. One that was cut off goes on where it stood.
Written to `benchmarks/results/continuations.md`.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from arguments import start
from provenance import RESULTS, provenance

from bora_sweep.config import SyntheticConfig
from bora_sweep.data.synthetic import documents
from bora_sweep.model.embedded import base_model_folder
from bora_sweep.report import Report

LANGUAGES = SyntheticConfig(num_tasks=12, min_documents=60, max_documents=320)
CANDIDATES = 4
SETTINGS = [
    "metrics=[accuracy]", "metric.normalize=true", "data.choices_column=choices", "search.num_trials=10",
    "data.train_fraction=0.15", "data.validation_fraction=0.25", "data.test_fraction=0.6",
]  # fmt: skip
OBJECTIVES = ("accuracy", "perplexity")


def questions() -> pd.DataFrame:
    """Columns task, prompt, completion and choices."""
    rng, found = np.random.default_rng(0), documents(LANGUAGES)
    found = found.assign(words=found["text"].str.split()).loc[lambda rows: rows["words"].str.len() >= 6]
    answers = found["words"].map(_second_half)
    drawn = []
    for task in found["task"]:
        others = answers[found["task"] != task].unique()
        drawn.append(rng.choice(others, CANDIDATES - 1, replace=False).tolist())
    made = pd.DataFrame(
        {
            "task": found["task"],
            "prompt": [" ".join(words[: len(words) // 2]) for words in found["words"]],
            "completion": answers,
            "choices": [
                rng.permutation([answer, *wrong]).tolist() for answer, wrong in zip(answers, drawn, strict=True)
            ],
        }
    )
    return made.loc[[len(set(choices)) == CANDIDATES for choices in made["choices"]]]


def _second_half(words: list[str]) -> str:
    return f" {' '.join(words[len(words) // 2 :])}"


def folder(objective: str) -> Path:
    """The run of an objective."""
    return Path("runs") / f"answers-{objective}"


def sweep(objective: str, path: Path) -> None:
    """Begin the sweep, or go on with it."""
    resume = ["--resume"] if (folder(objective) / "config.yaml").exists() else []
    settings = [f"data.path={path}", f"model.name={base_model_folder(LANGUAGES)}", f"search.objective={objective}"]
    command = [sys.executable, "-m", "bora_sweep.cli", "sweep", *resume, *settings, *SETTINGS]
    subprocess.run([*command, f"output={folder(objective)}"], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def table(objective: str) -> str:
    """A row for each tau: accuracy and perplexity on test, with their intervals."""
    report = Report(folder(objective))
    right, text = (report.of(name).overall for name in OBJECTIVES)
    lines = [
        "| τ | test accuracy | against the chosen τ, points | test perplexity | |",
        "| ---: | ---: | ---: | ---: | --- |",
    ]
    for one, two in zip(right.to_dict("records"), text.to_dict("records"), strict=True):
        share = [100 * one[f"test_accuracy{end}"] for end in ("", "_low", "_high")]
        points = [100 * one[f"difference_to_best{end}"] for end in ("", "_low", "_high")]
        nats = [two[f"test_perplexity{end}"] for end in ("", "_low", "_high")]
        tau = "base model" if np.isnan(one["tau"]) else f"{one['tau']:,.3g}".replace("inf", "∞")
        cells = [
            tau,
            "{:.1f}% [{:.1f}, {:.1f}]".format(*share),
            "" if one["best"] else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*points),
            "{:.2f} [{:.2f}, {:.2f}]".format(*nats),
            f"chosen by {objective}" if one["best"] else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return f"### τ chosen by {objective}\n\n{report.answer}\n\n" + "\n".join(lines)


def run() -> None:
    """Both sweeps, and the page."""
    path = Path("runs") / "answers.parquet"
    path.parent.mkdir(exist_ok=True)
    rows = questions()
    rows.to_parquet(path)
    for objective in OBJECTIVES:
        sweep(objective, path)
    about = f"{rows['task'].nunique()} speakers, {len(rows):,} questions with {CANDIDATES} candidates each."
    parts = ["# Which continuation is the speaker's own?", provenance(), about, *map(table, OBJECTIVES)]
    (RESULTS / "continuations.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    start(run, __doc__)
