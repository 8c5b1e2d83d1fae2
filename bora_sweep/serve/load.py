"""A trial that has finished, read back from its run's folder to be used elsewhere.

Shapes: K tasks, P parameters of one adapter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from torch import Tensor

from bora_sweep.config import Config, LoraConfig, read_config
from bora_sweep.errors import InputError, one_line
from bora_sweep.model.layout import Layout, layout_of_sites
from bora_sweep.model.lora import Site
from bora_sweep.runs.results import Results, read_results
from bora_sweep.runs.storage import Folder
from bora_sweep.train.checkpoint import ADAPTERS, load_adapters


@dataclass(frozen=True)
class LoadedTrial:
    """One trial's adapters, and what made them."""

    row: dict[str, Any]
    """Of `trials`."""
    config: Config
    lora: LoraConfig
    layout: Layout
    mean_P: Tensor
    """Theta."""
    theta_of: dict[str, Tensor]
    """Each task's adapter, theta_P."""
    results: Results
    """Of the whole run."""

    def refuse_unknown(self, tasks: Sequence[str]) -> None:
        """Refuse names that are no tasks of the run.

        Raises:
            InputError: There is one.
        """
        for task in tasks:
            if task not in self.theta_of:
                near = get_close_matches(task, self.theta_of, n=3, cutoff=0.0)
                raise InputError(f"--task {task}: the run has no such task; the nearest names are {', '.join(near)}")


def load_trial(run: Folder, asked: str = "best") -> LoadedTrial:
    """The trial `asked` for; `best`: the MAP fit of the lowest validation perplexity.

    Raises:
        InputError: There is no such run or trial, or it has not finished.
    """
    results = read_results(run)
    row = _finished(results, run, asked)
    folder = run / "trials" / row["trial_id"]
    try:
        tensors, about = load_adapters(folder)
    except FileNotFoundError:
        raise InputError(
            f"{folder}: has no {ADAPTERS}, though results/trials says that the trial finished; copy the run's folder "
            "as a whole"
        ) from None
    try:
        lora = LoraConfig(**about["lora"])
        layout = layout_of_sites([Site(**site) for site in about["sites"]], lora)
        theta_of = dict(zip(about["tasks"], tensors["theta_KP"], strict=True))
        return LoadedTrial(row, _config_of(row), lora, layout, tensors["mean_P"], theta_of, results)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder}: as another version of bora_sweep wrote it ({one_line(error, limit=200)}); install the one that "
            f"`versions` in results/trials names, {row['versions']}"
        ) from None


def _config_of(row: dict[str, Any]) -> Config:
    """What the trial was fitted with."""
    if not isinstance(row["config_json"], str):
        raise ValueError("config_json is not there")
    return read_config(row["config_json"])


def _finished(results: Results, run: Folder, asked: str) -> dict[str, Any]:
    """Its row of `trials`."""
    rows = results.trials.to_dict("records")
    finished = {row["trial_id"]: row for row in rows if row["status"] == "finished"}
    fits = [row for row in finished.values() if row["method"] == "map"]
    if asked == "best" and fits:
        return min(fits, key=lambda row: row["validation_perplexity"])
    if asked not in finished:
        raise InputError(f"--trial {asked}: no such finished trial in {run}; it has {', '.join(finished) or 'none'}")
    return finished[asked]
