"""The trials of a run: fits whose results land in the run's folder, whatever becomes of them."""

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
"""Between two rows that say how far a trial is: short epochs would spend their time on them."""


@dataclass(frozen=True)
class Trial:
    """One fit of a run: what to fit, and the trial whose adapters it begins with, or is made from."""

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
    """`run_pack` of one trial; returns its row of the `trials` table."""
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
    """Fit, in shared forward passes, and write each trial's rows, adapters and checkpoints under `run`.

    Goes on where an earlier try was cut off; a trial that was finished is not made again, and one that ends is written
    while the others go on. Where several processes make a fit, all call this, and the first alone writes.

    Returns:
        Each trial's row of the `trials` table.

    Raises:
        Exception: Whatever loading the base or the fits raised, after the rows of those that had not ended were written
            with status `failed`, or `interrupted`.
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
            own = opened[trial.trial_id], trackers[trial.trial_id], done
            rows[trial.trial_id] = from_rank_zero(partial(_close, trial, corpus, base, run, *own))
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
    """The row of each trial; those that are now to be fitted are written."""
    opened = {trial.trial_id: _open_row(run, trial) for trial in trials}
    for trial_id, row in opened.items():
        if row["status"] != "finished":
            write_table(run, "trials", trial_id, [row])
    return opened


def _open_row(run: Folder, trial: Trial) -> dict[str, Any]:
    """The row that an earlier try finished, else a new one that keeps the first try's time."""
    earlier = read_trial_row(run, trial.trial_id)
    if earlier is not None and earlier["status"] == "finished":
        return earlier
    begun = {"attempts": 1}
    if earlier is not None:
        begun = {"started_at": earlier["started_at"], "attempts": (earlier["attempts"] or 1) + 1}
    return {**initial_row(trial.config), "trial_id": trial.trial_id, "started_from": trial.start, **begun}


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
    if trouble := tracker.write(state.curve):
        state.notes.append(trouble)


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
    return record(trial.config, corpus, run, trial.trial_id, row, done)


def _estimated_tau(config: Config, corpus: TokenizedCorpus, base: PreTrainedModel, done: Fit) -> dict[str, float]:
    if not (config.search.estimate_tau and config.method == "map" and math.isinf(config.prior.tau)):
        return {}
    found = estimate_tau(config, corpus, base, done)
    return {"tau_estimate": found.tau, "tau_low": found.low, "tau_high": found.high}


def _refuse_no_scores(config: Config, documents: pd.DataFrame) -> None:
    """Refuse scores that are no numbers: a sum would be none, or leave them out."""
    without = documents[~np.isfinite(documents["nll_nats"])]
    if len(without):
        first = without.iloc[0]
        raise InputError(
            f"model.name={config.model.name}: {plural(len(without), 'document')} of validation and test have a score "
            f"of {first['nll_nats']}, the first {first['document_id']!r} of task {first['task']!r}: the base gives no "
            f"likelihood of them with model.dtype={config.model.dtype}; set another, leave such texts out, or name "
            "another base"
        )


def record(
    config: Config, corpus: TokenizedCorpus, run: Folder, trial_id: str, row: dict[str, Any], done: Fit
) -> dict[str, Any]:
    """Write a fit that has ended: its scores, its adapters and its row, which is returned."""
    folder = run / "trials" / trial_id
    documents = document_scores(corpus, done)
    _refuse_no_scores(config, documents)
    tasks = task_scores(config, corpus, documents, done)
    banks = {"mean_P": done.mean_P, "theta_KP": done.theta_KP, "std_KP": done.std_KP}
    kept = {name: bank for name, bank in banks.items() if bank is not None}
    save_adapters(folder, kept, about_adapters(config, corpus, done))
    write_table(run, "document_scores", trial_id, documents)
    write_table(run, "task_scores", trial_id, tasks)
    write_table(run, "curves", trial_id, done.state.curve)
    row = row | final_row(config, done, tasks)
    write_table(run, "trials", trial_id, [row])  # last: a trial whose row says finished has all its other rows
    drop_checkpoints(folder)
    return row


def starting_point(config: Config, base: PreTrainedModel, run: Folder, trial_id: str, tasks: Sequence[str]) -> Start:
    """Where a fit of `tasks` begins that goes on from another's adapters: as they are, or merged into one.

    Raises:
        InputError: The other did not finish, or was of other tasks or modules.
    """
    try:
        bank, about = load_adapters(run / "trials" / trial_id)
    except FileNotFoundError:
        raise InputError(f"trial {trial_id} has left no adapters for method={config.method} to begin with") from None
    layout = make_layout(base, config.lora)
    there = names_of(layout_of_sites([Site(**site) for site in about["sites"]], config.lora), about["tasks"])
    order = task_order(there, layout, tasks, f"trial {trial_id}")
    mean_P, theta_KP = bank["mean_P"], bank["theta_KP"]
    if order != sorted(order):
        theta_KP = theta_KP[order]
    if config.method in MERGES:
        mean_P = merge(theta_KP, layout, config.method, config.train.seed)
        theta_KP = mean_P.expand_as(theta_KP)
    return Start(mean_P, theta_KP, is_candidate=config.method != "map")
