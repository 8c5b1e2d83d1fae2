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
from bora_sweep.sweep.search import Point, trial_config
from bora_sweep.train.path import run_path
from bora_sweep.train.run import run_trial
from bora_sweep.train.trainer import State


def tune_trial(params: dict[str, Any], config: Config, corpus: TokenizedCorpus, run: str, umask: int) -> None:
    """Fit what `params` (of `TauSearch.suggest`) says, and report to Tune after each epoch and at the end.

    A fit whose input is wrong cannot succeed by trying again: it is reported with an objective that is not a number and
    ends there; any other error is raised, so that Tune takes the trial up again from its checkpoint.
    """
    os.umask(umask)  # the driver's: Ray's processes have a narrower one
    torch.set_num_threads(max(1, int(config.ray.cpus_per_trial)))
    own = trial_config(config, Point(**params["point"]), params["seed_index"])

    def report(state: State) -> None:
        row = state.curve[-1]
        tune.report({"epoch": state.epoch, "objective": row["nll_nats"] / row["num_tokens"]})

    def warm_base() -> PreTrainedModel:
        return _warm_base(config.model, config.data)

    try:
        if params["point"]["method"] == "path":
            rows = run_path(own, corpus, warm_base, Path(run), params["trial_id"], report)
            row = min(rows, key=lambda row: row["validation_perplexity"])
        else:
            row = run_trial(
                own, corpus, warm_base, Path(run), params["trial_id"], on_epoch=report, start=params["start"]
            )
    except InputError:
        tune.report({"epoch": 0, "objective": float("nan")})
        return
    tune.report({"epoch": row["epochs"], "objective": row["validation_nll_nats"] / row["validation_num_tokens"]})


@lru_cache(maxsize=1)
def _warm_base(model: ModelConfig, data: DataConfig) -> PreTrainedModel:
    """The base model, loaded once per worker process: the trials of a sweep share it."""
    return load_base(model, data)
