"""Loads a finished trial from its run's folder, for export and generation.

Shapes: K tasks, P parameters of one adapter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from bora_sweep.config import Config, LoraConfig, read_config, with_values
from bora_sweep.data.corpus import Form
from bora_sweep.errors import InputError, one_line
from bora_sweep.model.layout import Layout, layout_of_sites
from bora_sweep.model.lora import Site
from bora_sweep.model.peft_io import GLOBAL, GROUP_PREFIX
from bora_sweep.runs.folder import ADD, config_of
from bora_sweep.runs.places import MODEL, at_places_of, refuse_missing, with_places
from bora_sweep.runs.results import Results, objective, read_results
from bora_sweep.runs.storage import Folder, exists
from bora_sweep.train.checkpoint import ADAPTERS, load_adapters
from bora_sweep.trials.fingerprints import check_moved

NOWHERE_ELSE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class LoadedTrial:
    """The adapters of one finished trial, with its configuration and the run's results."""

    row: dict[str, Any]
    """The trial's row of `trials`."""
    config: Config
    """The trial's configuration."""
    lora: LoraConfig
    """Rank, alpha and variant of its adapters."""
    layout: Layout
    """Where the adapters' parts are."""
    mean_P: Tensor
    """Theta."""
    theta_of: dict[str, Tensor]
    """Each task's adapter, theta_P."""
    group_of: dict[str, str]
    """The group of each task; empty where there are none."""
    theta_g: dict[str, Tensor]
    """Each group's adapter; empty where groups have none."""
    form: Form
    """What its documents are: running text, prompts with completions, or conversations."""
    results: Results
    """The results of the whole run."""

    @cached_property
    def is_shared(self) -> bool:
        """Whether all tasks have one adapter, Theta, as at tau = inf."""
        return all(torch.equal(theta_P, self.mean_P) for theta_P in self.theta_of.values())

    def knows(self, name: str) -> bool:
        """Whether `name` is a task, `_global`, or `_group_NAME` of a group that has an adapter."""
        return name in self.theta_of or name == GLOBAL or name in self._theta_of_group

    def adapter(self, name: str) -> Tensor:
        """The adapter of a name that it `knows`; of several by that name the task's."""
        if name in self.theta_of:
            return self.theta_of[name]
        return self.mean_P if name == GLOBAL else self._theta_of_group[name]

    @cached_property
    def _theta_of_group(self) -> dict[str, Tensor]:
        return {f"{GROUP_PREFIX}{group}": theta_P for group, theta_P in self.theta_g.items()}

    def refuse_unknown_tasks(self, tasks: Sequence[str], option: str = "--task") -> None:
        """Refuse names that are no tasks of the run; `option` is what gave them, for the message.

        Raises:
            InputError: There is such a name.
        """
        for task in tasks:
            if task not in self.theta_of:
                near = get_close_matches(task, self.theta_of, n=3, cutoff=0.0)
                raise InputError(f"{option} {task}: the run has no such task; the nearest names are {', '.join(near)}")


def load_trial(run: Folder, trial: str = "best", places: Mapping[str, str] = NOWHERE_ELSE) -> LoadedTrial:
    """Load a trial by its ID; `best` is the MAP fit that is best on validation by what chose tau, or the fit of `add`.

    Args:
        run: The run's folder.
        trial: The ID, or `best`.
        places: Where the run's inputs are now, by key (`bora_sweep.runs.places.given_places`).

    Raises:
        InputError: There is no such run or trial, the trial has not finished, the base's folder is gone, or what is at
            `places` is not what the run was begun with. Whoever loads the base compares it (`check_base_model`).
    """
    results = read_results(run)
    row = finished_row(results, run, trial)
    folder = run / "trials" / row["trial_id"]
    try:
        tensors, description = load_adapters(folder)
    except FileNotFoundError:
        raise InputError(
            f"{folder}: has no {ADAPTERS}, though results/trials says that the trial finished; copy the run's folder "
            "as a whole, or pack it with --all-trials"
        ) from None
    try:
        lora = LoraConfig(**description["lora"])
        layout = layout_of_sites([Site(**site) for site in description["sites"]], lora)
        theta_of = dict(zip(description["tasks"], tensors["theta_KP"], strict=True))
        loaded = LoadedTrial(
            row=row,
            config=_config_of(row),
            lora=lora,
            layout=layout,
            mean_P=tensors["mean_P"],
            theta_of=theta_of,
            group_of=description.get("group_of", {}),  # older trials have no groups
            theta_g=dict(zip(description.get("groups", ()), tensors.get("theta_GP", ()), strict=True)),
            form=description.get("form", "text"),  # older trials have running text
            results=results,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder}: written by another version of bora_sweep ({one_line(error, limit=200)}); install the one that "
            f"`versions` in results/trials names, {row['versions']}"
        ) from None
    return replace(loaded, config=_at_its_places(loaded.config, run, places))


def _at_its_places(config: Config, run: Folder, places: Mapping[str, str]) -> Config:
    """The configuration with its inputs at `places`, else where the run's `config.yaml` says, which a resume renews."""
    if exists(run / "config.yaml"):
        config = at_places_of(config, config_of(run))
    config = with_places(config, places)
    refuse_missing(run, config, [MODEL])
    check_moved(run, config, places.keys())
    return config


def _config_of(row: dict[str, Any]) -> Config:
    """The configuration in a row of `trials`, with the type of weights that `model.dtype=auto` chose."""
    if not isinstance(row["config_json"], str):
        raise ValueError("config_json is missing")
    config = read_config(row["config_json"])
    return with_values(config, model={"dtype": row["dtype"]}) if config.model.dtype == "auto" else config


def best_row(rows: Sequence[dict[Any, Any]], run: Folder) -> dict[Any, Any]:
    """Of rows of `trials` the MAP fit that is best on validation by what chose tau, or the fit of `add`.

    Raises:
        InputError: None of them has finished.
    """
    finished = [row for row in rows if row["status"] == "finished"]
    if added := [row for row in finished if row["trial_id"] == ADD]:
        return added[0]
    if map_fits := [row for row in finished if row["method"] == "map"]:
        return min(map_fits, key=lambda row: (objective(row), row["validation_perplexity"]))
    ids = ", ".join(row["trial_id"] for row in finished)
    raise InputError(f"--trial best: no such finished trial in {run}; it has {ids or 'none'}")


def finished_row(results: Results, run: Folder, trial: str) -> dict[str, Any]:
    """The row of `trials` of a finished trial, by its ID or `best`.

    Raises:
        InputError: There is none.
    """
    rows = results.trials.to_dict("records")
    finished = {row["trial_id"]: row for row in rows if row["status"] == "finished"}
    if trial in finished:
        return finished[trial]
    if trial == "best":
        return best_row(rows, run)
    raise InputError(f"--trial {trial}: no such finished trial in {run}; it has {', '.join(finished) or 'none'}")
