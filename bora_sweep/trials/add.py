"""What a run of `add` begins with, of a trial of another run: Theta, Theta_g of its groups, and where tasks are fitted
anew their adapters.

All are copied into the folder of the run, so that it can go on where the other run is gone.

Shapes: K adapters (one per task), G groups, P parameters of one adapter.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bora_sweep.config import Config, LoraConfig, with_values
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.errors import InputError
from bora_sweep.model.layout import layout_of_sites, make_layout
from bora_sweep.model.lora import Site
from bora_sweep.runs.folder import ADD, GLOBAL, GROUP
from bora_sweep.runs.source import Source, read_source, write_source
from bora_sweep.runs.storage import Folder, exists, read_bytes
from bora_sweep.train.checkpoint import ADAPTERS, load_adapters, save_adapters
from bora_sweep.train.checkpoint_names import names_of, task_order
from bora_sweep.train.state import Start, State, StepReport, no_op
from bora_sweep.trials.trial import Trial, run_trial

START = "start"
"""The folder, in that of a run of `add`, with the adapters that it begins with."""


@dataclass(frozen=True)
class Foundation:
    """What a run of `add` takes over from another run."""

    source: Source
    mean_P: Tensor
    """Theta."""
    theta_of: dict[str, Tensor]
    """The adapters of the tasks that are fitted anew."""
    theta_g: dict[str, Tensor]
    """The adapters of groups; empty where tasks are tied to Theta alone."""
    about: dict[str, Any]
    """Of the adapters' file: settings of the adapters, and sites."""


def fingerprints_of_run(run: Folder, trial_id: str) -> dict[str, str]:
    """The SHA-256 of the files of a run that a run of `add` stands on, by their paths in it."""
    paths = ["config.yaml", "documents.parquet", f"trials/{trial_id}/{ADAPTERS}"]
    return {path: hashlib.sha256(read_bytes(run / path)).hexdigest() for path in paths if exists(run / path)}


def write_foundation(run: Folder, foundation: Foundation) -> None:
    """Write what the run takes over into its folder."""
    mean_P = foundation.mean_P
    banks = {"theta_KP": foundation.theta_of, "theta_GP": foundation.theta_g}
    rows = {name: torch.stack([mean_P, *theta_of.values()])[1:] for name, theta_of in banks.items()}
    about = foundation.about | {"tasks": list(foundation.theta_of), "groups": list(foundation.theta_g)}
    save_adapters(run / START, {"mean_P": mean_P, **rows}, about)
    write_source(run, foundation.source)


def start_of_add(config: Config, base: PreTrainedModel, *, run: Folder, corpus: TokenizedCorpus) -> Start:
    """Theta and Theta_g, and for each task its adapter in the other run; Theta_g, or Theta, of tasks that it has not.

    Args:
        config: Of the fit.
        base: The base model.
        run: The run's folder.
        corpus: The tasks of the fit, with groups as `with_all_groups` makes them.

    Raises:
        InputError: What the run began with is gone or damaged, or is of other modules.
    """
    banks, about = _load_start(run)
    layout, tasks = make_layout(base, config.lora), corpus.tasks
    written = names_of(layout_of_sites([Site(**site) for site in about["sites"]], LoraConfig(**about["lora"])), tasks)
    task_order(written, layout, tasks, str(run / START))  # refuses other modules
    mean_P, theta_GP = banks["mean_P"], None
    centre_KP = mean_P.expand(len(tasks), -1)
    if config.has_group_level:
        num_unknown = len(corpus.groups) - len(about["groups"])
        theta_GP = torch.cat([banks["theta_GP"], mean_P.expand(num_unknown, -1)])
        centre_KP = theta_GP[torch.as_tensor(corpus.group_K)]
    theta_of = dict(zip(about["tasks"], banks["theta_KP"], strict=True))
    theta_KP = torch.stack([theta_of.get(task, centre_P) for task, centre_P in zip(tasks, centre_KP, strict=True)])
    return Start(mean_P, theta_KP, theta_GP=theta_GP)


def with_all_groups(corpus: TokenizedCorpus, run: Folder) -> TokenizedCorpus:
    """With the groups that the run took over, in its order, before those that it has not; as it is without groups.

    So the trial has the adapters of all groups, and tasks can be added to it in turn.

    Raises:
        InputError: What the run began with is gone or damaged.
    """
    if corpus.group_K is None:
        return corpus
    known = _load_start(run)[1]["groups"]
    groups = (*known, *(group for group in corpus.groups if group not in known))
    return replace(corpus, groups=groups, group_K=np.array([groups.index(group) for group in corpus.group_of.values()]))


def _load_start(run: Folder) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_foundation` wrote."""
    try:
        banks, about = load_adapters(run / START)
    except FileNotFoundError:
        raise InputError(
            f"{run / START}: has no {ADAPTERS}, with which the run began; restore it from a copy"
        ) from None
    return banks, {"groups": []} | about  # older runs have no groups


def run_add(
    config: Config,
    corpus: TokenizedCorpus,
    load_base: Callable[[], PreTrainedModel],
    run: Folder,
    *,
    on_step: Callable[[StepReport], None] = no_op,
    on_epoch: Callable[[State], None] = no_op,
    check_stop: Callable[[], None] = no_op,
) -> dict[str, Any]:
    """Score the tasks under Theta as it is, trial `global`, and under Theta_g, `group`; then fit their adapters, `add`.

    Args:
        config: Of the fit.
        corpus: The new tasks' tokens.
        load_base: Loads the base model.
        run: The run's folder.
        on_step: As for `run_trial`.
        on_epoch: As for `run_trial`.
        check_stop: As for `run_trial`.

    Returns:
        The row of `trials` of the fit.

    Raises:
        Interrupted: `check_stop` raised it.
    """
    source, loaded = read_source(run), list[PreTrainedModel]()
    corpus = with_all_groups(corpus, run)

    def base() -> PreTrainedModel:
        loaded[:] = loaded or [load_base()]
        return loaded[0]

    under_theta = with_values(config, prior={"tau": math.inf, "tau_2": math.inf})
    under_groups = {GROUP: with_values(config, prior={"tau": math.inf})} if config.has_group_level else {}
    row: dict[str, Any] = {}
    for trial_id, own in {GLOBAL: under_theta, **under_groups, ADD: config}.items():
        trial = Trial(trial_id, own, source.folder, partial(start_of_add, own, run=run, corpus=corpus))
        row = run_trial(trial, corpus, base, run, on_step=on_step, on_epoch=on_epoch, check_stop=check_stop)
    return row
