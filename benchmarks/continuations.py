"""Accuracy over tau: which of four continuations is the speaker's own, on the embedded family of languages.

    python benchmarks/continuations.py [world] [others]

Each document of the embedded corpus is cut in half. The first half is the prompt, the second the answer. The other
candidates are second halves in the `world` language, from which all speakers differ, in part alike, with a twentieth of
the questions to train on; or by `others` of the speakers, with a seventh. Two sweeps each, in `runs/answers-KIND-…`,
which differ by `search.objective` alone; some minutes each on two cores. One that was cut off goes on where it stood.
Written to `benchmarks/results/continuations_KIND.md`.
"""

import os
import subprocess
import sys
from dataclasses import replace
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
WORLD = replace(LANGUAGES, shift=0.0, seed=1)
"""Speakers who do not differ from the world language."""
CANDIDATES = 4
FRACTIONS = {"world": (0.05, 0.27, 0.68), "others": (0.15, 0.25, 0.6)}
"""By kind of the wrong answers: shares of training, validation and test."""
SETTINGS = [
    "metrics=[accuracy]", "metric.normalize=true", "data.choices_column=choices", "search.num_trials=10",
    "lora.target_modules=null",
]  # fmt: skip
OBJECTIVES = ("accuracy", "perplexity")


def questions(kind: str) -> pd.DataFrame:
    """Columns task, prompt, completion and choices, with wrong answers of a kind."""
    rng, found = np.random.default_rng(0), documents(LANGUAGES)
    found = found.assign(words=found["text"].str.split()).loc[lambda rows: rows["words"].str.len() >= 6]
    answers = found["words"].map(_second_half)
    world = pd.Series([_second_half(text.split()) for text in documents(WORLD)["text"] if len(text.split()) >= 6])
    drawn = []
    for task in found["task"]:
        wrong = world if kind == "world" else answers[found["task"] != task]
        drawn.append(rng.choice(wrong.unique().tolist(), CANDIDATES - 1, replace=False).tolist())
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


def folder(kind: str, objective: str) -> Path:
    """The run of an objective."""
    return Path("runs") / f"answers-{kind}-{objective}"


def sweep(kind: str, objective: str, path: Path) -> None:
    """Begin the sweep, or go on with it."""
    resume = ["--resume"] if (folder(kind, objective) / "config.yaml").exists() else []
    settings = [f"data.path={path}", f"model.name={base_model_folder(LANGUAGES)}", f"search.objective={objective}"]
    names = ("train_fraction", "validation_fraction", "test_fraction")
    settings += [f"data.{name}={share}" for name, share in zip(names, FRACTIONS[kind], strict=True)]
    command = [sys.executable, "-m", "bora_sweep.cli", "sweep", *resume, *settings, *SETTINGS]
    subprocess.run(
        [*command, f"output={folder(kind, objective)}"], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def table(kind: str, objective: str) -> str:
    """A row for each tau: accuracy and perplexity on test, with their intervals."""
    report = Report(folder(kind, objective))
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


def run(kinds: list[str]) -> None:
    """Both sweeps and the page of each kind; none: of both kinds."""
    for kind in kinds or FRACTIONS:
        path, rows = Path("runs") / f"answers-{kind}.parquet", questions(kind)
        path.parent.mkdir(exist_ok=True)
        rows.to_parquet(path)
        for objective in OBJECTIVES:
            sweep(kind, objective, path)
        about = f"{rows['task'].nunique()} speakers, {len(rows):,} questions with {CANDIDATES} candidates each."
        tables = [table(kind, objective) for objective in OBJECTIVES]
        page = "\n\n".join([f"# Which continuation is the speaker's own? ({kind})", provenance(), about, *tables])
        (RESULTS / f"continuations_{kind}.md").write_text(f"{page}\n", encoding="utf-8")


if __name__ == "__main__":
    start(run, __doc__, "KIND", choices=FRACTIONS)
