"""The trials of a run: fits that write their results into the run's folder, also where they fail."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from transformers import PreTrainedModel

from bora_sweep.config import Config
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.errors import InputError, one_line, plural
from bora_sweep.model.layout import layout_of_sites, make_layout
from bora_sweep.model.lora import Site
from bora_sweep.model.merge_tasks import MERGES, merge
from bora_sweep.runs.results import read_trial_row, write_table
from bora_sweep.runs.storage import Folder, StorageFullError
from bora_sweep.train.checkpoint import drop_checkpoints, load_adapters, save_adapters
from bora_sweep.train.checkpoint_names import names_of, task_order
from bora_sweep.train.distributed.process_group import from_rank_zero, is_rank_zero
from bora_sweep.train.fit import FitSpec, fit_pack, no_op
from bora_sweep.train.methods.tau_estimate import estimate_tau
from bora_sweep.train.state import Fit, Start, State, StepReport
from bora_sweep.trials.rows import about_adapters, document_scores, final_row, initial_row, progress_row, task_scores
from bora_sweep.trials.tracking import Tracker

ROW_SECONDS = 5.0
"""Between two rows of progress, so that short epochs stay short."""


@dataclass(frozen=True)
class Trial:
    """One fit of a run, and the trial whose adapters it begins with or is made from."""

    trial_id: str
    config: Config
    start: str | None = None


def run_trial(
    trial: Trial,
    corpus: TokenizedCorpus,
    load_base: Callable[[], PreTrainedModel],
    run: Folder,
    on_step: Callable[[StepReport], None] = no_op,
    on_epoch: Callable[[State], None] = no_op,
    check_stop: Callable[[], None] = no_op,
) -> dict[str, Any]:
    """`run_pack` of one trial. Returns its row of the `trials` table."""
    return run_pack([trial], corpus, load_base, run, on_step, on_epoch, check_stop)[trial.trial_id]


def run_pack(
    trials: Sequence[Trial],
    corpus: TokenizedCorpus,
    load_base: Callable[[], PreTrainedModel],
    run: Folder,
    on_step: Callable[[StepReport], None] = no_op,
    on_epoch: Callable[[State], None] = no_op,
    check_stop: Callable[[], None] = no_op,
) -> dict[str, dict[str, Any]]:
    """Fit trials that share their forward passes, and write each one's rows, adapters and checkpoints under `run`.

    An interrupted trial resumes, and a finished one is not fitted again. A trial is written as soon as it ends, while
    the others go on. With several processes all call this, and rank 0 alone writes.

    Args:
        trials: The fits.
        corpus: The tokenised text.
        load_base: Loads the base model.
        run: The run's folder.
        on_step: Called after each step of the pack.
        on_epoch: Called after each epoch of each fit.
        check_stop: As for `bora_sweep.train.fit.fit`.

    Returns:
        Each trial's row of the `trials` table.

    Raises:
        Exception: The error of loading the base or of a fit. The rows of the trials that had not ended were written
            before, with status `failed` or `interrupted`.
    """
    opened = from_rank_zero(lambda: _open_rows(run, trials))
    rows = {trial_id: row for trial_id, row in opened.items() if row["status"] == "finished"}
    open_trials = [trial for trial in trials if trial.trial_id not in rows]
    if not open_trials:
        return rows
    trackers = {trial.trial_id: Tracker(trial.config, run, trial.trial_id) for trial in open_trials}
    try:
        base = load_base()
        specs = [
            _fit_spec(trial, corpus.tasks, base, run, opened[trial.trial_id], trackers[trial.trial_id], on_epoch)
            for trial in open_trials
        ]
        for place, done in fit_pack(specs, corpus, base, on_step, check_stop):
            trial = open_trials[place]
            row, tracker = opened[trial.trial_id], trackers[trial.trial_id]
            rows[trial.trial_id] = from_rank_zero(partial(_close, trial, corpus, base, run, row, tracker, done))
    except BaseException as error:
        if not is_rank_zero():
            raise
        status = "failed" if isinstance(error, Exception) else "interrupted"
        for trial_id in opened.keys() - rows.keys():
            opened[trial_id].update(status=status, error=one_line(error), ended_at=datetime.now(UTC))
            with suppress(StorageFullError):  # the first error says what is wrong
                write_table(run, "trials", trial_id, [opened[trial_id]])
        raise
    finally:
        for tracker in trackers.values():
            tracker.finish()
    return rows


def _open_rows(run: Folder, trials: Sequence[Trial]) -> dict[str, dict[str, Any]]:
    """Each trial's row; the rows of those to be fitted are written."""
    opened = {trial.trial_id: _open_row(run, trial) for trial in trials}
    for trial_id, row in opened.items():
        if row["status"] != "finished":
            write_table(run, "trials", trial_id, [row])
    return opened


def _open_row(run: Folder, trial: Trial) -> dict[str, Any]:
    """A finished row as it is; else a new one, with the first attempt's start and the number of attempts."""
    earlier = read_trial_row(run, trial.trial_id)
    if earlier is not None and earlier["status"] == "finished":
        return earlier
    attempt = {"attempts": 1}
    if earlier is not None:
        attempt = {"started_at": earlier["started_at"], "attempts": (earlier["attempts"] or 1) + 1}
    return {**initial_row(trial.config), "trial_id": trial.trial_id, "started_from": trial.start, **attempt}


def _fit_spec(
    trial: Trial,
    tasks: Sequence[str],
    base: PreTrainedModel,
    run: Folder,
    row: dict[str, Any],
    tracker: Tracker,
    on_epoch: Callable[[State], None],
) -> FitSpec:
    written_at = -math.inf

    def epoch_done(state: State) -> None:
        nonlocal written_at
        row.update(progress_row(state))
        if time.monotonic() - written_at > ROW_SECONDS:
            write_table(run, "curves", trial.trial_id, state.curve)
            write_table(run, "trials", trial.trial_id, [row])
            _track(tracker, state)
            written_at = time.monotonic()
        on_epoch(state)

    source = trial.start
    start = None if source is None else from_rank_zero(lambda: starting_point(trial.config, base, run, source, tasks))
    return FitSpec(trial.config, run / "trials" / trial.trial_id, start, epoch_done if is_rank_zero() else no_op)


def _track(tracker: Tracker, state: State) -> None:
    if error := tracker.write(state.curve):
        state.notes.append(error)


def _close(
    trial: Trial,
    corpus: TokenizedCorpus,
    base: PreTrainedModel,
    run: Folder,
    row: dict[str, Any],
    tracker: Tracker,
    done: Fit,
) -> dict[str, Any]:
    _track(tracker, done.state)
    tracker.finish()
    row = row | _estimated_tau(trial.config, corpus, base, done)
    return write_result(trial.config, corpus, run, trial.trial_id, row, done)


def _estimated_tau(config: Config, corpus: TokenizedCorpus, base: PreTrainedModel, done: Fit) -> dict[str, float]:
    if not (config.search.estimate_tau and config.method == "map" and math.isinf(config.prior.tau)):
        return {}
    found = estimate_tau(config, corpus, base, done)
    return {"tau_estimate": found.tau, "tau_low": found.low, "tau_high": found.high}


def _check_finite(config: Config, documents: pd.DataFrame) -> None:
    """Refuse scores that are not finite: no sum over documents would mean anything."""
    without = documents[~np.isfinite(documents["nll_nats"])]
    if len(without):
        first = without.iloc[0]
        raise InputError(
            f"model.name={config.model.name}: {plural(len(without), 'document')} of validation and test have a score "
            f"of {first['nll_nats']}, the first {first['document_id']!r} of task {first['task']!r}: the base gives no "
            f"likelihood of them with model.dtype={config.model.dtype}; set another, leave such texts out, or name "
            "another base"
        )


def write_result(
    config: Config, corpus: TokenizedCorpus, run: Folder, trial_id: str, row: dict[str, Any], done: Fit
) -> dict[str, Any]:
    """Write the scores, adapters and row of a fit that has ended.

    Args:
        config: Of the fit.
        corpus: The tokenised text.
        run: The run's folder.
        trial_id: The trial.
        row: Its row so far.
        done: The fit.

    Returns:
        Its row of `trials`.

    Raises:
        InputError: A document has no finite score.
    """
    folder = run / "trials" / trial_id
    documents = document_scores(corpus, done)
    _check_finite(config, documents)
    tasks = task_scores(config, corpus, documents, done)
    banks = {"mean_P": done.mean_P, "theta_KP": done.theta_KP, "std_KP": done.std_KP}
    tensors = {name: bank for name, bank in banks.items() if bank is not None}
    save_adapters(folder, tensors, about_adapters(config, corpus, done))
    write_table(run, "document_scores", trial_id, documents)
    write_table(run, "task_scores", trial_id, tasks)
    write_table(run, "curves", trial_id, done.state.curve)
    row = row | final_row(config, done, tasks)
    write_table(run, "trials", trial_id, [row])  # last: a trial whose row says finished has all its other rows
    drop_checkpoints(folder)
    return row


def starting_point(config: Config, base: PreTrainedModel, run: Folder, trial_id: str, tasks: Sequence[str]) -> Start:
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
