"""Every method and both search modes on the same data: test perplexity with intervals, tokens and seconds.

    python benchmarks/methods.py [optuna] [path] data.path=… model.name=…

Two sweeps, `runs/methods-optuna` of 12 separate fits and `runs/methods-path` of one path, with their baselines; an hour
or two on two cores with the data of the committed table. A sweep that was cut off goes on where it stood.
"""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
from arguments import start
from provenance import RESULTS, provenance

SETTINGS = ["train.batch_size=16", "train.learning_rate=0.01", "lora.target_modules=null"]
"""For all fits alike. A shared fit of the committed table's data takes 35 epochs so to its best, 205.1 on validation;
with the defaults, 64 and 0.003, it takes 79 to 209.6."""
BASELINES = "zero_shot,independent,shared,fine_tuned,average,ties,dare"
MODES = {
    "optuna": ["search.num_trials=12", f"search.baselines=[{BASELINES},pfedme,vi]", "search.ranks=[2,4,16,32]"],
    "path": ["search.mode=path", f"search.baselines=[{BASELINES}]"],
}


def folder(mode: str) -> Path:
    """The run of a search mode."""
    return Path("runs") / f"methods-{mode}"


def sweep(mode: str, settings: list[str]) -> None:
    """Begin the sweep of `mode`, or go on with it."""
    resume = ["--resume"] if (folder(mode) / "config.yaml").exists() else []
    command = [sys.executable, "-m", "bora_sweep.cli", "sweep", *resume, *settings, *MODES[mode]]
    subprocess.run([*command, f"output={folder(mode)}"], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def table(modes: list[str]) -> str:
    """Rows of both modes in order of test perplexity, and how the path fares by its two aims."""
    parts = [pd.read_csv(folder(mode) / "report" / "tables" / "methods.csv").assign(mode=mode) for mode in modes]
    rows = pd.concat(parts).sort_values("test_perplexity")
    lines = [
        "| method | mode | validation | test | tokens | of the search | seconds | of the search |",
        "| --- " * 8 + "|",
    ]
    for row in rows.to_dict("records"):
        interval = f"{row['test_perplexity']:.1f} [{row['test_low']:.1f}, {row['test_high']:.1f}]"
        amounts = ("train_tokens", "search_train_tokens", "train_seconds", "search_train_seconds")
        cells = [row["name"], row["mode"], f"{row['validation_perplexity']:.1f}", interval]
        lines.append("| " + " | ".join([*cells, *(f"{row[name]:,.0f}" for name in amounts)]) + " |")
    return "\n".join(lines) + (f"\n\n{path_in_words(rows, modes)}" if "path" in modes else "")


def path_in_words(rows: pd.DataFrame, modes: list[str]) -> str:
    """The tokens of the whole path over those of its shared fit; its best on validation beside Optuna's."""
    trials = pd.read_parquet(folder("path") / "results" / "trials")
    on_path = trials[trials["trial_id"].str.match(r"002(\.|$)")]
    shared = trials.set_index("trial_id").loc["002"]
    ratio = on_path["train_tokens"].sum() / shared["train_tokens"]
    said = f"The path: the shared fit and {len(on_path) - 1} values of tau in {ratio:.2f} times the tokens of that fit."
    bora = rows[rows["name"].str.startswith("BoRA")].set_index("mode")["validation_perplexity"]
    return said + "".join(f" Best on validation, {mode}: {bora[mode]:.2f}." for mode in modes)


def main(arguments: list[str]) -> None:
    """Sweep, then the table."""
    modes = [mode for mode in MODES if mode in arguments] or list(MODES)
    for mode in modes:
        sweep(mode, [*SETTINGS, *(argument for argument in arguments if argument not in MODES)])
    text = f"# Methods and search modes\n\n{table(modes)}\n\n{provenance()}\n"
    print(text)
    (RESULTS / "methods.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    start(main, __doc__, "optuna|path|key=value")
