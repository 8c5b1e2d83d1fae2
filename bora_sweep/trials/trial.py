"""The trials of a run: fits that write their results into the run's folder, also where they fail."""

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bora_sweep.config import Config, DataConfig, ModelConfig
from bora_sweep.data.encode import Encoder
from bora_sweep.data.task_prompt import with_task_names
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.errors import one_line
from bora_sweep.model.base import load_tokenizer
from bora_sweep.runs.results import read_trial_row, write_table
from bora_sweep.runs.storage import Folder, StorageFullError
from bora_sweep.train.checkpoint import drop_checkpoints
from bora_sweep.train.distributed.process_group import from_rank_zero, is_rank_zero
from bora_sweep.train.fit import fit_pack
from bora_sweep.train.methods.tau_estimate import estimate_tau
from bora_sweep.train.state import Fit, FitSpec, Start, State, StepReport, no_op
from bora_sweep.trials.outcome import starting_point, write_result
from bora_sweep.trials.rows import initial_row, progress_row
from bora_sweep.trials.tracking import Tracker

ROW_SECONDS = 5.0
"""Between two rows of progress, so that short epochs stay short."""


@dataclass(frozen=True)
class Trial:
    """One fit of a run, and the trial whose adapters it begins with or is made from."""

    trial_id: str
    config: Config
    start: str | None = None
    make_start: Callable[[PreTrainedModel], Start] | None = None
    """Makes the starting point from the base where `start` is in another run; None: `start` is a trial of this one."""


def run_trial(
    trial: Trial,
    corpus: TokenizedCorpus,
    load_base: Callable[[], PreTrainedModel],
    run: Folder,
    *,
    on_step: Callable[[StepReport], None] = no_op,
    on_epoch: Callable[[State], None] = no_op,
    check_stop: Callable[[], None] = no_op,
) -> dict[str, Any]:
    """`run_pack` of one trial. Returns its row of the `trials` table."""
    rows = run_pack([trial], corpus, load_base, run, on_step=on_step, on_epoch=on_epoch, check_stop=check_stop)
    return rows[trial.trial_id]


def run_pack(
    trials: Sequence[Trial],
    corpus: TokenizedCorpus,
    load_base: Callable[[], PreTrainedModel],
    run: Folder,
    *,
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
    row_of = from_rank_zero(lambda: _open_rows(run, trials))
    rows = {trial_id: row for trial_id, row in row_of.items() if row["status"] == "finished"}
    running = [
        _RunningTrial(trial, run, row_of[trial.trial_id], on_epoch) for trial in trials if trial.trial_id not in rows
    ]
    if not running:
        return rows
    try:
        corpus = _corpus_of(running[0].trial.config, corpus)
        base = load_base()
        specs = [trial.fit_spec(base, corpus.tasks) for trial in running]
        tokenizer = tokenizer_of(running[0].trial.config)
        for place, done in fit_pack(specs, corpus, base, on_step=on_step, check_stop=check_stop, tokenizer=tokenizer):
            trial = running[place]
            rows[trial.trial_id] = from_rank_zero(partial(trial.close, corpus, base, done))
    except BaseException as error:
        if is_rank_zero():
            for trial in running:
                if trial.trial_id not in rows:
                    trial.close_unfinished(error)
        raise
    finally:
        for trial in running:
            trial.tracker.finish()
    return rows


def tokenizer_of(config: Config) -> PreTrainedTokenizerBase | None:
    """The base model's tokenizer where a metric reads generated text, else None.

    Raises:
        InputError: It cannot be loaded.
    """
    return _cached_tokenizer(config.model, config.data) if config.generates_text else None


def _corpus_of(config: Config, corpus: TokenizedCorpus) -> TokenizedCorpus:
    """What the fit reads: the run's corpus, with `method=task_prompt` with each task's name before its texts."""
    if config.method != "task_prompt":
        return corpus
    return with_task_names(config, corpus, Encoder(_cached_tokenizer(config.model, config.data)))


@lru_cache(maxsize=1)
def _cached_tokenizer(model: ModelConfig, data: DataConfig) -> PreTrainedTokenizerBase:
    """Loaded once per process: the trials of a sweep share it."""
    return load_tokenizer(model, data)


class _RunningTrial:
    """A trial that is being fitted: its row, its tracker, and what is written of it on the way.

    Args:
        trial: The trial.
        run: The run's folder.
        row: Its row of `trials` so far.
        on_epoch: Called after each epoch.
    """

    def __init__(self, trial: Trial, run: Folder, row: dict[str, Any], on_epoch: Callable[[State], None]) -> None:
        self.trial, self.run, self.row, self.on_epoch = trial, run, row, on_epoch
        self.trial_id, self.written_at = trial.trial_id, -math.inf
        self.tracker = Tracker(trial.config, run, trial.trial_id)

    def fit_spec(self, base: PreTrainedModel, tasks: Sequence[str]) -> FitSpec:
        """What to fit, and where it starts."""
        config, source, start = self.trial.config, self.trial.start, None
        if self.trial.make_start is not None:
            start = self.trial.make_start(base)
        elif source is not None:
            start = from_rank_zero(lambda: starting_point(config, base, run=self.run, trial_id=source, tasks=tasks))
        after_epoch = self.after_epoch if is_rank_zero() else no_op
        return FitSpec(config, self.run / "trials" / self.trial_id, start, after_epoch)

    def after_epoch(self, state: State) -> None:
        """Write the curve and the row, at most every `ROW_SECONDS`."""
        self.row.update(progress_row(state))
        if time.monotonic() - self.written_at > ROW_SECONDS:
            write_table(self.run, "curves", self.trial_id, state.curve)
            write_table(self.run, "trials", self.trial_id, [self.row])
            self._track(state)
            self.written_at = time.monotonic()
        self.on_epoch(state)

    def close(self, corpus: TokenizedCorpus, base: PreTrainedModel, done: Fit) -> dict[str, Any]:
        """Write the result of the fit. Returns the trial's row."""
        self._track(done.state)
        self.tracker.finish()
        self.row |= _estimated_tau(self.trial.config, corpus, base, done)
        return write_result(self.trial.config, corpus, done, run=self.run, trial_id=self.trial_id, row=self.row)

    def close_unfinished(self, error: BaseException) -> None:
        """Write why the fit did not end."""
        status = "failed" if isinstance(error, Exception) else "interrupted"
        self.row.update(status=status, error=one_line(error), ended_at=datetime.now(UTC))
        with suppress(StorageFullError):  # the first error says what is wrong
            write_table(self.run, "trials", self.trial_id, [self.row])

    def _track(self, state: State) -> None:
        if error := self.tracker.write(state.curve):
            state.notes.append(error)


def _open_rows(run: Folder, trials: Sequence[Trial]) -> dict[str, dict[str, Any]]:
    """Each trial's row; the rows of those to be fitted are written."""
    opened = {trial.trial_id: _open_row(run, trial) for trial in trials}
    for trial_id, row in opened.items():
        if row["status"] != "finished":
            write_table(run, "trials", trial_id, [row])
        else:  # a process that was killed right after its end left them
            drop_checkpoints(run / "trials" / trial_id)
    return opened


def _open_row(run: Folder, trial: Trial) -> dict[str, Any]:
    """A finished row as it is; else a new one, with the first attempt's start and the number of attempts.

    A fit of another tau was that of a baseline at the best tau, before a sweep was extended: it is made anew, and
    does not go on from its checkpoints.
    """
    earlier = read_trial_row(run, trial.trial_id)
    if earlier is not None and not _is_same_fit(earlier, trial.config):
        drop_checkpoints(run / "trials" / trial.trial_id)
        earlier = None
    if earlier is not None and earlier["status"] == "finished":
        return earlier
    attempt = {"attempts": 1}
    if earlier is not None:
        attempt = {"started_at": earlier["started_at"], "attempts": (earlier["attempts"] or 1) + 1}
    return {**initial_row(trial.config), "trial_id": trial.trial_id, "started_from": trial.start, **attempt}


def _is_same_fit(earlier: dict[str, Any], config: Config) -> bool:
    """Whether a row is of this fit; one that has ended has the tau that it learnt in place of `learn`."""
    if config.learns_tau and earlier["tau_learnt"]:
        return True
    return _chosen(json.loads(earlier["config_json"])) == _chosen(config.to_dict())


def _chosen(values: dict[str, Any]) -> tuple[Any, ...]:
    """What a search chooses, of a configuration; an older release may not have written all of it."""
    prior, train = values["prior"], values["train"]
    rates = train.get("learning_rate"), train.get("lr_per_tau")
    return prior["tau"], prior.get("tau_2"), prior.get("group_scales"), *rates


def _estimated_tau(config: Config, corpus: TokenizedCorpus, base: PreTrainedModel, done: Fit) -> dict[str, float]:
    if not (config.search.estimate_tau and config.method == "map" and math.isinf(config.tau)):
        return {}
    found = estimate_tau(config, corpus, base, done)
    return {"tau_estimate": found.tau, "tau_low": found.low, "tau_high": found.high}
