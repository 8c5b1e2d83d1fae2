"""What a trial leaves: scores, adapters and its row, written here, and adapters that another fit begins with."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from transformers import PreTrainedModel

from bora_sweep.config import MERGES, Config
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.errors import InputError, plural
from bora_sweep.model.layout import layout_of_sites, make_layout
from bora_sweep.model.lora import Site
from bora_sweep.model.merge_tasks import merge
from bora_sweep.runs.results import write_table
from bora_sweep.runs.storage import Folder
from bora_sweep.train.checkpoint import drop_checkpoints, load_adapters, save_adapters
from bora_sweep.train.checkpoint_names import names_of, task_order
from bora_sweep.train.state import Fit, Start
from bora_sweep.trials.rows import about_adapters, document_scores, final_row, predictions, task_scores, with_learnt_tau


def _check_finite(config: Config, documents: pd.DataFrame, dtype: str) -> None:
    """Refuse scores that are not finite: no sum over documents would mean anything."""
    without = documents[~np.isfinite(documents["nll_nats"])]
    if len(without):
        first = without.iloc[0]
        raise InputError(
            f"model.name={config.model.name}: {plural(len(without), 'document')} of validation and test have a score "
            f"of {first['nll_nats']}, the first {first['document_id']!r} of task {first['task']!r}: the base gives no "
            f"likelihood of them with model.dtype={dtype}; set another, leave such texts out, or name "
            "another base"
        )


def result_of(
    config: Config, corpus: TokenizedCorpus, done: Fit
) -> tuple[dict[str, Any], dict[str, pd.DataFrame | list[dict[str, Any]]]]:
    """What a fit that has ended leaves in the tables.

    Args:
        config: Of the fit.
        corpus: The tokenised text.
        done: The fit.

    Returns:
        The columns of its row of `trials` that its end fills, and its rows of the other tables by the table's name.

    Raises:
        InputError: A document has no finite score.
    """
    config = with_learnt_tau(config, done.state)
    documents = document_scores(corpus, done)
    _check_finite(config, documents, done.dtype)
    scored = None if done.predictions is None else predictions(corpus, done)
    tasks = task_scores(config, corpus, documents, scored, done)
    tables = {"document_scores": documents, "task_scores": tasks, "curves": done.state.curve}
    return final_row(config, corpus, done, tasks, scored), tables if scored is None else {
        **tables,
        "predictions": scored,
    }


def write_result(
    config: Config, corpus: TokenizedCorpus, done: Fit, *, run: Folder, trial_id: str, row: dict[str, Any]
) -> dict[str, Any]:
    """Write the scores, adapters and row of a fit that has ended.

    Args:
        config: Of the fit.
        corpus: The tokenised text.
        done: The fit.
        run: The run's folder.
        trial_id: The trial.
        row: Its row so far.

    Returns:
        Its row of `trials`.

    Raises:
        InputError: A document has no finite score.
    """
    folder = run / "trials" / trial_id
    final, tables = result_of(config, corpus, done)
    is_mean = len(done.theta_KP) == 1  # at tau = inf: then it is no copy, which safetensors refuses
    theta_KP = done.theta_KP.clone() if is_mean else done.theta_KP
    banks = {"mean_P": done.mean_P, "theta_KP": theta_KP, "theta_GP": done.theta_GP, "std_KP": done.std_KP}
    tensors = {name: bank for name, bank in banks.items() if bank is not None}
    save_adapters(folder, tensors, about_adapters(config, corpus, done))
    for name, rows in tables.items():
        write_table(run, name, trial_id, rows)
    row = row | final
    write_table(run, "trials", trial_id, [row])  # last: a trial whose row says finished has all its other rows
    drop_checkpoints(folder)
    return row


def starting_point(config: Config, base: PreTrainedModel, *, run: Folder, trial_id: str, tasks: Sequence[str]) -> Start:
    """The starting point of a fit that begins with another trial's adapters, as they are or merged into one.

    Args:
        config: Of the fit; `method` says whether to merge.
        base: The base model.
        run: The run's folder.
        trial_id: The other trial.
        tasks: The fit's tasks, in its order.

    Raises:
        InputError: The other trial left no adapters, or has other tasks or modules.
    """
    try:
        banks, about = load_adapters(run / "trials" / trial_id)
    except FileNotFoundError:
        raise InputError(f"trial {trial_id} has left no adapters for method={config.method} to begin with") from None
    layout = make_layout(base, config.lora)
    written = names_of(layout_of_sites([Site(**site) for site in about["sites"]], config.lora), about["tasks"])
    order = task_order(written, layout, tasks, f"trial {trial_id}")
    mean_P, theta_KP = banks["mean_P"], banks["theta_KP"]
    if order != sorted(order):
        theta_KP = theta_KP[order]
    if config.method in MERGES:
        mean_P = merge(theta_KP, layout, config.method, config.train.seed)
        theta_KP = mean_P.expand_as(theta_KP)
    return Start(mean_P, theta_KP, is_candidate=config.method != "map")
