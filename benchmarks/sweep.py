"""What a sweep costs beside its fits: its wall time against the seconds of fitting, and where the rest goes.

    python benchmarks/sweep.py [--trials 16] [--seconds 20] [key=value …]

By default the embedded corpus with twice its documents, a trial on each core, each of as many epochs as take
`--seconds` of training in a process of its own. The fits' times are those in the run's Parquet; Ray and the searcher
are clocked from outside. Written to `benchmarks/results/sweep.md` and `.json`. With `--trials 4 --seconds 2` it is a
trial of the benchmark, not of the sweep.
"""

import argparse
import json
import multiprocessing
import os
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from arguments import refusing
from provenance import RESULTS, provenance

EMBEDDED = str(Path(__file__).resolve().parents[1] / "conf" / "embedded.yaml")
FIXED = [
    "data.synthetic.min_documents=28",
    "data.synthetic.max_documents=200",
    "search.baselines=[independent,shared]",
    "search.estimate_tau=false",  # its seconds are in no curve
    "train.device=cpu",
]
UNIT_RUNS = 9  # of what is timed alone, for a median
WALL_TARGET, TRIAL_TARGET = 1.10, 1.0


@dataclass
class Clock:
    """Spans of time by name, on the clock that the trials' rows are written by."""

    spans: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def measure(self, name: str, work: Callable[[], Any]) -> Any:
        """What `work` returns."""
        started = time.time()
        try:
            return work()
        finally:
            self.spans.setdefault(name, []).append((started, time.time()))

    def watch(self, owner: Any, function: str, name: str) -> None:
        """Measure each call of a function that others call."""
        inner = getattr(owner, function)
        setattr(owner, function, lambda *given, **named: self.measure(name, lambda: inner(*given, **named)))

    def seconds(self) -> dict[str, float]:
        """The sum of each name's spans."""
        return {name: sum(end - start for start, end in spans) for name, spans in self.spans.items()}


def settings_of(given: list[str], trials: int, epochs: int) -> list[str]:
    """A sweep of `trials` fits of `epochs` each: tau = 0, tau = inf, and the search's."""
    length = [f"train.max_epochs={epochs}", f"train.patience={epochs}", f"search.num_trials={trials - 2}"]
    return [EMBEDDED, *FIXED, *given, *length]


def import_worker() -> None:
    """What a worker imports to run a trial."""
    from bora_sweep.tune import LOOPBACK, QUIET

    os.environ.update(QUIET | LOOPBACK)
    import bora_sweep.tune.worker  # noqa: F401


def read_corpus(config: Any) -> Any:
    """The tokenised text."""
    from bora_sweep.data.corpus import load_corpus
    from bora_sweep.data.tokens import tokenize
    from bora_sweep.model.base import load_tokenizer

    return tokenize(load_corpus(config.data), load_tokenizer(config.model, config.data), config.model.max_tokens)


def measure_alone(settings: list[str]) -> dict[str, float]:
    """Seconds of each thing that a worker does beside an epoch, and of an epoch; to be called in a fresh process."""
    clock = Clock()
    clock.measure("import", import_worker)
    import torch

    from bora_sweep.config import load_config, with_values
    from bora_sweep.model.base import load_base
    from bora_sweep.runs.results import write_table
    from bora_sweep.train.checkpoint import save_checkpoint
    from bora_sweep.train.fit import fit

    torch.set_num_threads(1)
    config = load_config(settings)
    corpus = clock.measure("read and tokenise", lambda: read_corpus(config))
    base = clock.measure("load the base", lambda: load_base(config.model, config.data))
    brief = with_values(config, train={"max_epochs": 3, "patience": 3})
    done = fit(brief, corpus, base)
    banks = {f"{copy}.{name}": getattr(done, name).clone() for copy in range(4) for name in ("mean_P", "theta_KP")}
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch)
        for step in range(UNIT_RUNS):
            clock.measure("curves", lambda: write_table(run, "curves", "000", done.state.curve))
            clock.measure("row", lambda: write_table(run, "trials", "000", [{"config_json": config.to_json()}]))
            clock.measure("checkpoint", lambda step=step: save_checkpoint(run, step, banks, {}))
            clock.measure("corpus", lambda: pickle.loads(pickle.dumps(corpus, protocol=5)))
    alone = {name: statistics.median(end - start for start, end in spans) for name, spans in clock.spans.items()}
    return {**alone, "epoch": min(row["seconds"] for row in done.state.curve if row["split"] == "train")}


def run_clocked(settings: list[str], run: Path) -> tuple[Clock, pd.DataFrame, pd.DataFrame]:
    """The sweep and its report, clocked; its trials and curves."""
    clock = Clock()
    clock.measure("import", import_worker)
    import ray
    from rich.console import Console

    from bora_sweep.config import load_config
    from bora_sweep.report import write_report
    from bora_sweep.runs.folder import create_run
    from bora_sweep.runs.results import read_results
    from bora_sweep.tune import run_sweep
    from bora_sweep.tune.search import TauSearch

    config = load_config(settings)
    corpus = clock.measure("read and tokenise", lambda: read_corpus(config))
    create_run(config, run)
    clock.watch(ray, "init", "ray.init")
    clock.watch(ray, "shutdown", "ray.shutdown")
    clock.watch(TauSearch, "suggest", "searcher")
    ended = clock.measure("sweep", lambda: run_sweep(config, corpus, run, [], Console(file=StringIO())))
    clock.measure("report", lambda: write_report(run))
    results = read_results(run)
    assert ended, results.trials[["trial_id", "status", "error"]]
    return clock, results.trials.sort_values("started_at"), results.curves


@dataclass
class Part:
    """A trial, its seconds counted from the sweep's begin, and what they went to."""

    slot: int
    """One that was free when it started."""
    is_first: bool
    """On its slot."""
    wait: float
    """Since the slot was free."""
    end: float
    train: float
    validation: float
    scoring: float
    """Of validation and test at the end, in no curve: reckoned at the speed per token of the epochs' validation."""
    rest: float

    @property
    def fitting(self) -> float:
        """Training, validation, scoring."""
        return self.train + self.validation + self.scoring


def parts_of(trials: pd.DataFrame, curves: pd.DataFrame, begun: float) -> list[Part]:
    """The trials in the order of their start."""
    parts, free = [], []
    for trial in trials.to_dict("records"):
        validation = curves[(curves["trial_id"] == trial["trial_id"]) & (curves["split"] == "validation")]
        seconds = float(np.sum(validation["seconds"]))
        tokens = trial["validation_num_tokens"] + trial["test_num_tokens"]
        start, end = trial["started_at"].timestamp() - begun, trial["ended_at"].timestamp() - begun
        slot = next((slot for slot, since in enumerate(free) if since <= start), len(free))
        is_first = slot == len(free)
        wait = start if is_first else start - free[slot]
        free[slot:] = [end, *free[slot + 1 :]]
        scoring = seconds / validation["num_tokens"].sum() * tokens
        rest = end - start - trial["train_seconds"] - seconds - scoring
        parts.append(Part(slot, is_first, wait, end, trial["train_seconds"], seconds, scoring, rest))
    return parts


def account(clock: Clock, parts: list[Part], alone: dict[str, float], epochs: int) -> dict[str, float]:
    """Slot-seconds: where each slot's share of the sweep's wall time went; sums to wall time x slots.

    Files and the load of the base as they take alone, times their number.
    """
    from bora_sweep.train.checkpoint_times import SPACING
    from bora_sweep.trials.trial import ROW_SECONDS

    took, last = clock.seconds(), max(part.end for part in parts)
    firsts, warm = [part for part in parts if part.is_first], [part for part in parts if not part.is_first]
    loading = alone["load the base"] * len(firsts)
    rows = sum(1 + int((part.train + part.validation) / ROW_SECONDS) for part in parts)
    spacing = SPACING * alone["checkpoint"]
    checkpoints = sum(min(epochs, 1 + int((part.train + part.validation) / spacing)) for part in parts)
    files, saved = rows * (alone["curves"] + alone["row"]), checkpoints * alone["checkpoint"]
    ends = [max(part.end for part in parts if part.slot == slot) for slot in range(len(firsts))]
    return {
        "training": sum(part.train for part in parts),
        "validation after each epoch": sum(part.validation for part in parts),
        "scoring validation and test at the end (reckoned)": sum(part.scoring for part in parts),
        "start: `ray.init`": len(firsts) * took["ray.init"],
        "start: Tune, worker processes, their imports": sum(part.wait for part in firsts)
        - len(firsts) * took["ray.init"],
        "start: load the base": loading,
        f"now and then ({ROW_SECONDS:g} s): two Parquet files": files,
        f"after an epoch ({SPACING:g} times its own seconds): checkpoint": saved,
        "what else a trial does": sum(part.rest for part in parts) - loading - files - saved,
        "between trials: the searcher": took["searcher"],
        "between trials: Tune, shipping the corpus": sum(part.wait for part in warm) - took["searcher"],
        "end: slots idle while the last trial runs": sum(last - end for end in ends),
        "end: Tune and `ray.shutdown`": len(firsts) * (took["sweep"] - last),
    }


def figures(clock: Clock, parts: list[Part], alone: dict[str, float], epochs: int) -> dict[str, Any]:
    """All that the page and the JSON say."""
    took, specs, warm = (
        clock.seconds(),
        sum(part.is_first for part in parts),
        [p for p in parts if not p.is_first],
    )
    train, fitting = sum(part.train for part in parts), sum(part.fitting for part in parts)
    cold = alone["import"] + alone["read and tokenise"] + alone["load the base"]
    command = sum(took[name] for name in ("import", "read and tokenise", "sweep", "report"))
    return {
        "trials": len(parts),
        "slots": specs,
        "epochs": epochs,
        "train_seconds_per_trial": train / len(parts),
        "wall_seconds": took["sweep"],
        "wall_over_fitting": took["sweep"] * specs / fitting,
        "wall_over_training": took["sweep"] * specs / train,
        "command_over_fitting": command * specs / fitting,
        "warm_trial_seconds": statistics.mean(part.wait for part in warm),
        "warm_trial_seconds_with_epochs": statistics.mean(part.wait + part.rest for part in warm),
        "cold_trial_seconds": cold,
        "saved_seconds": cold * (len(parts) - specs) / specs,
        "slot_seconds": account(clock, parts, alone, epochs),
        "alone_seconds": alone,
        "command_seconds": took,
    }


def as_markdown(told: dict[str, Any]) -> str:
    """The page."""
    whole = told["wall_seconds"] * told["slots"]
    lines = ["| where a slot's time goes | slot-seconds | of all |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {sec:.1f} | {sec / whole:.1%} |" for name, sec in told["slot_seconds"].items()]
    lines += [f"| wall time x {told['slots']} | {whole:.1f} | |"]
    alone = "; ".join(f"{name} {sec:.3f}" for name, sec in told["alone_seconds"].items())
    command = "; ".join(f"{name} {sec:.1f}" for name, sec in told["command_seconds"].items())
    return f"""# What a sweep costs beside its fits

{told["trials"]} trials of {told["epochs"]} epochs, {told["train_seconds_per_trial"]:.1f} s of training each, on \
{told["slots"]} slots: {told["wall_seconds"]:.1f} s.

| | measured | target |
| --- | ---: | ---: |
| wall time / (seconds of fitting / slots) | {told["wall_over_fitting"]:.3f} | {WALL_TARGET:.2f} |
| wall time / (`trials.train_seconds` / slots) | {told["wall_over_training"]:.3f} | |
| the whole command, with its imports and the report, / (seconds of fitting / slots) | \
{told["command_over_fitting"]:.3f} | |
| seconds between two trials of a warm worker: Ray, the base, the corpus | {told["warm_trial_seconds"]:.2f} | \
{TRIAL_TARGET:.1f} |
| the same with the files and reports of its {told["epochs"]} epochs | {told["warm_trial_seconds_with_epochs"]:.2f} | |
| import, read and tokenise, load: what a worker of its own would cost each trial | {told["cold_trial_seconds"]:.1f} | |
| wall seconds that warm workers and a shared corpus save this sweep | {told["saved_seconds"]:.1f} | |

Fitting is training, validation after each epoch and the scores of validation and test at the end; `train_seconds` is
training alone.

{chr(10).join(lines)}

Seconds alone, in a process of its own: {alone}.

Seconds of the command: {command}.

{provenance()}
"""


def main() -> None:
    """As the module's docstring has it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=16, help="at least 3, tau = 0 and inf among them")
    parser.add_argument("--seconds", type=float, default=20.0, help="of training in a trial, about")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    asked = parser.parse_args()
    with refusing(parser):
        measure(asked.trials, asked.seconds, asked.settings)


def measure(trials: int, seconds: float, settings: list[str]) -> None:
    """Calibrate, sweep, and the page."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        alone = pool.submit(measure_alone, settings_of(settings, trials, 1)).result()
    epochs = max(1, round(seconds / alone["epoch"]))
    with tempfile.TemporaryDirectory(prefix="bora-sweep-benchmark-") as scratch:
        run = Path(scratch) / "run"
        clock, rows, curves = run_clocked(settings_of(settings, trials, epochs), run)
    parts = parts_of(rows, curves, clock.spans["sweep"][0][0])
    told = figures(clock, parts, alone, epochs)
    text = as_markdown(told)
    print(text)
    (RESULTS / "sweep.md").write_text(text, encoding="utf-8")
    (RESULTS / "sweep.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
