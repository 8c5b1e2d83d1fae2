"""What a run of `add` begins with: Theta, and where tasks are fitted anew their adapters, of a trial of another run.

Both are copied into the folder of the run, so that it can go on where the other run is gone.

Shapes: K adapters (one per task), P parameters of one adapter.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bora_sweep.config import Config, LoraConfig, with_values
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.errors import InputError
from bora_sweep.model.layout import layout_of_sites, make_layout
from bora_sweep.model.lora import Site
from bora_sweep.runs.folder import ADD, GLOBAL
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
    about: dict[str, Any]
    """Of the adapters' file: settings of the adapters, and sites."""


def fingerprints_of_run(run: Folder, trial_id: str) -> dict[str, str]:
    """The SHA-256 of the files of a run that a run of `add` stands on, by their paths in it."""
    paths = ["config.yaml", "documents.parquet", f"trials/{trial_id}/{ADAPTERS}"]
    return {path: hashlib.sha256(read_bytes(run / path)).hexdigest() for path in paths if exists(run / path)}


def write_foundation(run: Folder, foundation: Foundation) -> None:
    """Write what the run takes over into its folder."""
    theta_of, mean_P = foundation.theta_of, foundation.mean_P
    theta_KP = torch.stack([*theta_of.values()]) if theta_of else mean_P.new_zeros(0, len(mean_P))
    about = foundation.about | {"tasks": list(theta_of)}
    save_adapters(run / START, {"mean_P": mean_P, "theta_KP": theta_KP}, about)
    write_source(run, foundation.source)


def start_of_add(config: Config, base: PreTrainedModel, run: Folder, tasks: Sequence[str]) -> Start:
    """Theta, and for each task its adapter in the other run, or Theta where it had none.

    Args:
        config: Of the fit.
        base: The base model.
        run: The run's folder.
        tasks: The tasks of the fit, in its order.

    Raises:
        InputError: What the run began with is gone or damaged, or is of other modules.
    """
    try:
        banks, about = load_adapters(run / START)
    except FileNotFoundError:
        raise InputError(
            f"{run / START}: has no {ADAPTERS}, with which the run began; restore it from a copy"
        ) from None
    layout = make_layout(base, config.lora)
    written = names_of(layout_of_sites([Site(**site) for site in about["sites"]], LoraConfig(**about["lora"])), tasks)
    task_order(written, layout, tasks, str(run / START))  # refuses other modules
    mean_P, row_of = banks["mean_P"], {task: row for row, task in enumerate(about["tasks"])}
    if not row_of:
        return Start(mean_P, mean_P.expand(len(tasks), -1))
    bank_KP = torch.cat([banks["theta_KP"], mean_P[None]])
    return Start(mean_P, bank_KP[[row_of.get(task, len(row_of)) for task in tasks]])


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
    """Score the tasks under Theta as it is, trial `global`, then fit their adapters, trial `add`.

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

    def base() -> PreTrainedModel:
        loaded[:] = loaded or [load_base()]
        return loaded[0]

    def make_start(base: PreTrainedModel) -> Start:
        return start_of_add(config, base, run, corpus.tasks)

    shared = with_values(config, prior={"tau": math.inf})
    row: dict[str, Any] = {}
    for trial_id, own in ((GLOBAL, shared), (ADD, config)):
        trial = Trial(trial_id, own, source.folder, make_start)
        row = run_trial(trial, corpus, base, run, on_step=on_step, on_epoch=on_epoch, check_stop=check_stop)
    return row
