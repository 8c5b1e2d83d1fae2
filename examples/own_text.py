"""From a CSV file to the best tau: writes notes.csv, sweeps tau on Ray, and prints the report's sentence and table.

The base model is the embedded one, which knows a hundred words and needs no download. For text of your own, give your
file, its columns and a base model that knows its language, such as `model={"name": "facebook/opt-350m"}`.
"""

import csv
import random

import bora_sweep
from bora_sweep.config import SyntheticConfig
from bora_sweep.model.embedded import base_model_folder

WRITERS = {"ann": ["foxes", "owls"], "bob": ["sailors", "pilots"], "cat": ["poets", "painters"], "dan": ["bakers"]}
VERBS = ["guard", "share", "build", "watch", "hide"]
QUALITIES = ["golden", "silver", "small", "old", "green", "bright"]
THINGS = ["lanterns", "letters", "boats", "clocks", "songs", "rivers"]


def write_notes(path: str, count: int = 240) -> None:
    """Notes of four writers: each has a few favourite subjects, and all share a taste for some things."""
    draw = random.Random(0)
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["writer", "note"])
        for _ in range(count):
            writer = draw.choice(list(WRITERS))
            sentences = [
                f"{draw.choice(WRITERS[writer])} {draw.choice(VERBS)} our "
                f"{draw.choice(QUALITIES)} {draw.choice(THINGS)}."
                for _ in range(2)
            ]
            rows.writerow([writer, " ".join(sentences)])


if __name__ == "__main__":
    write_notes("notes.csv")
    results = bora_sweep.sweep(
        data={"path": "notes.csv", "text_column": "note", "task_column": "writer"},
        model={"name": str(base_model_folder(SyntheticConfig(), progress=True)), "max_tokens": 32},
        lora={"rank": 4, "target_modules": "all-linear"},
        train={"learning_rate": 5e-3, "max_epochs": 15},
        search={"num_trials": 4},
        quiet=False,
    )
    report = bora_sweep.Report(results)
    print(report.answer)
    print(report.overall[["tau", "test_perplexity"]].dropna().to_string(index=False))
    print("The report:", report.write())
