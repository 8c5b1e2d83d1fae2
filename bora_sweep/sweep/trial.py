"""One trial as Ray Tune runs it: a worker process that fits, reports each epoch, and stays warm for the next."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from ray import tune
from transformers import PreTrainedModel

from bora_sweep.config import Config, DataConfig, ModelConfig
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.errors import InputError
from bora_sweep.model.base import load_base
from bora_sweep.results import objective
from bora_sweep.sweep.points import Point, trial_config
from bora_sweep.train.packing import choose_pack
from bora_sweep.train.path import run_path
from bora_sweep.train.run import Trial, run_pack
from bora_sweep.train.state import State


def tune_trial(params: dict[str, Any], config: Config, corpus: TokenizedCorpus, run: str, umask: int) -> None:
    """Fit what `params` (of `TauSearch.suggest`) says, and report to Tune after each epoch and at the end.

    Fits whose input is wrong cannot succeed by trying again: they are reported without an objective and end there; any
    other error is raised, so that Tune takes the trial up again from its checkpoints.
    """
    os.umask(umask)  # the driver's: Ray's processes have a narrower one
    torch.set_num_threads(max(1, int(config.ray.cpus_per_trial)))

    def report(state: State) -> None:
        tune.report({"epoch": state.epoch})

    def warm_base() -> PreTrainedModel:
        return _warm_base(config.model, config.data)

    fits = params["fits"]
    trials = [
        Trial(fit["trial_id"], trial_config(config, Point(**fit["point"]), fit["seed_index"]), fit["start"])
        for fit in fits
    ]
    try:
        if fits[0]["point"]["method"] == "path":
            path = run_path(trials[0].config, corpus, warm_base, Path(run), trials[0].trial_id, report)
            rows = {trials[0].trial_id: min(path, key=lambda row: row["validation_perplexity"])}
        else:
            rows = run_pack(trials, corpus, warm_base, Path(run), on_epoch=report)
    except InputError:
        rows = {}
    tune.report({"objectives": {trial_id: objective(row) for trial_id, row in rows.items()}})


def measure_pack(config: Config, corpus: TokenizedCorpus, most: int) -> int:
    """`search.pack` where it is `auto`, for the place where this runs."""
    torch.set_num_threads(max(1, int(config.ray.cpus_per_trial)))
    return choose_pack(config, corpus, _warm_base(config.model, config.data), most)


@lru_cache(maxsize=1)
def _warm_base(model: ModelConfig, data: DataConfig) -> PreTrainedModel:
    """The base model, loaded once per worker process: the trials of a sweep share it."""
    return load_base(model, data)
