"""A fit from start to end, alone or in a pack: fits that differ by tau and share every forward pass.

The rows of a batch are repeated once for each fit of the pack, each with that fit's adapters. So the base model is in
memory once, its weights are read once for all fits, and small batches fill the device. The fits see the same documents
in the same order. A fit that ends leaves the pack.

Shapes: S fits of a pack, B rows, N documents.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bora_sweep.config import Config
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.model.grouped_hierarchy import GroupedHierarchy
from bora_sweep.process import Interrupted
from bora_sweep.runs.storage import Folder
from bora_sweep.train.checkpoint import save_checkpoint
from bora_sweep.train.checkpoint_times import CheckpointTimes
from bora_sweep.train.device import device_name, make_accelerator, peak_memory_bytes, refuse_other_count
from bora_sweep.train.distributed.process_group import from_rank_zero, sync_errors
from bora_sweep.train.evaluate import score_documents
from bora_sweep.train.make_trainer import make_trainers
from bora_sweep.train.metrics.scorer import Scorer
from bora_sweep.train.pack import Pack
from bora_sweep.train.protocol import MakeBatches
from bora_sweep.train.resume import progress_of, rows_of, start_or_resume, tensors_of
from bora_sweep.train.state import Fit, FitSpec, Start, State, StepReport, no_op
from bora_sweep.train.step import step
from bora_sweep.train.stops_by_user import StopsByUser
from bora_sweep.train.trainer import Trainer


def fit(
    config: Config,
    corpus: TokenizedCorpus,
    base: PreTrainedModel,
    folder: Folder | None = None,
    *,
    on_step: Callable[[StepReport], None] = no_op,
    on_epoch: Callable[[State], None] = no_op,
    start: Start | None = None,
    check_stop: Callable[[], None] = no_op,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Fit:
    """The MAP estimate at `prior.tau` (`bora_sweep.model.map_objective`), with early stopping on validation.

    A fit whose loss stops being finite ends there and keeps its best epoch. If the device's memory runs out, the fit
    goes on with fewer documents in a forward pass, and as many in a step.

    Args:
        config: What to fit; `config.tau` is the precision of the prior.
        corpus: The tokenised text.
        base: The base model; it is frozen, and left as it was.
        folder: The trial's folder. Checkpoints are written there when `CheckpointTimes` says, and if the fit is asked
            to stop. An interrupted fit resumes from the last one, with the numbers that it would have had. None: no
            checkpoints.
        on_step: Called after each optimiser step.
        on_epoch: Called after each epoch.
        start: Initial Theta and adapters; None: A random, B zero, as in PEFT.
        check_stop: Called after each step and each scored batch. If it raises `Interrupted`, a checkpoint is written.
        tokenizer: Of the base; needed with metrics of generated text.

    Returns:
        The fit at its best epoch.

    Raises:
        InputError: The configuration does not fit the model or the corpus.
        Interrupted: `check_stop` raised it.
    """
    spec = FitSpec(config, folder, start, on_epoch)
    ((_, done),) = fit_pack([spec], corpus, base, on_step=on_step, check_stop=check_stop, tokenizer=tokenizer)
    return done


def fit_pack(
    specs: Sequence[FitSpec],
    corpus: TokenizedCorpus,
    base: PreTrainedModel,
    *,
    on_step: Callable[[StepReport], None] = no_op,
    check_stop: Callable[[], None] = no_op,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Iterator[tuple[int, Fit]]:
    """Fits that share their forward passes, each as `fit` would make it but for rounding.

    Args:
        specs: The fits. They may differ by tau, tau_2, learning rate, prior and solver, but not by batches, adapters or
            precision. A fit without `Config.can_be_packed` must be alone.
        corpus: The tokenised text.
        base: As for `fit`.
        on_step: Called after each step of the pack, with the nats of all its fits.
        check_stop: As for `fit`.
        tokenizer: As for `fit`.

    Yields:
        (index in `specs`, fit), in the order in which the fits end.

    Raises:
        InputError: As for `fit`.
        Interrupted: As for `fit`.
    """
    assert all(_shared(spec.config) == _shared(specs[0].config) for spec in specs)
    assert len(specs) == 1 or all(spec.config.can_be_packed for spec in specs)
    refuse_other_count(specs[0].config)
    accelerator = make_accelerator(specs[0].config)
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with Pack(specs[0].config, corpus, base, accelerator) as pack:
        scorer = Scorer(pack, tokenizer) if specs[0].config.metrics else None
        running = dict(enumerate(make_trainers([spec.config for spec in specs], pack)))
        checkpoints = _Checkpoints(specs)
        stops = StopsByUser({fit: specs[place].folder for place, fit in running.items()})
        new = [fit for place, fit in running.items() if start_or_resume(fit, specs[place].folder, specs[place].start)]
        if new:
            validate(pack, new, check_stop, scorer)
        while running:
            for place in [place for place, fit in running.items() if fit.stopped_by is not None]:
                yield place, finish(pack, running.pop(place), check_stop, scorer)
            if running:
                calls = {"on_step": on_step, "check_stop": check_stop, "end_asked": stops, "scorer": scorer}
                _advance(pack, running, specs, checkpoints, **calls)


class _Checkpoints:
    """Of the fits of a pack. Fits at the same step are saved together."""

    def __init__(self, specs: Sequence[FitSpec]) -> None:
        self.specs, self.times = specs, CheckpointTimes(60 * specs[0].config.train.checkpoint_minutes)

    def save(self, fits: dict[int, Trainer]) -> None:
        with self.times.measured():
            for place, fit in fits.items():
                if (folder := self.specs[place].folder) is not None and fit.state.diverged is None:
                    content = fit.state.step, tensors_of(fit), progress_of(fit), rows_of(fit), fit.row_log
                    from_rank_zero(partial(save_checkpoint, folder, *content))
                    if fit.bank is not None:
                        fit.bank.written()

    def save_if_due(self, fits: dict[int, Trainer], *, within_epoch: bool) -> None:
        if self.times.is_due(within_epoch=within_epoch):
            self.save(fits)


def _advance(
    pack: Pack,
    running: dict[int, Trainer],
    specs: Sequence[FitSpec],
    checkpoints: _Checkpoints,
    *,
    on_step: Callable[[StepReport], None],
    check_stop: Callable[[], None],
    end_asked: Callable[[Sequence[Trainer]], None],
    scorer: Scorer | None,
) -> None:
    """Train to the end of the epoch the fits that are furthest behind: all, but where a pack was interrupted."""
    behind = min((fit.state.epoch, fit.state.batch) for fit in running.values())
    fits = {place: fit for place, fit in running.items() if (fit.state.epoch, fit.state.batch) == behind}

    def after_step(report: StepReport) -> None:
        on_step(report)
        checkpoints.save_if_due(fits, within_epoch=True)

    try:
        run_epoch(pack, list(fits.values()), after_step, check_stop, scorer, end_asked)
    except Interrupted:
        checkpoints.save(fits)
        raise
    checkpoints.save_if_due(fits, within_epoch=False)
    for place, fit in fits.items():
        if fit.state.diverged is None and fit.state.stopped is None:
            specs[place].on_epoch(fit.state)


def _shared(config: Config) -> tuple:
    """What the fits of a pack have in common."""
    train = config.train
    batches = train.seed, train.batch_size, train.micro_batch_size, train.batches, train.tasks_per_batch
    start = config.lora, train.initial_noise, config.prior.penalty
    return start, batches, train.precision, train.compile, train.device, config.metrics, config.metric


def run_epoch(
    pack: Pack,
    fits: Sequence[Trainer],
    on_step: Callable[[StepReport], None] = no_op,
    check_stop: Callable[[], None] = no_op,
    scorer: Scorer | None = None,
    end_asked: Callable[[Sequence[Trainer]], None] = no_op,
) -> None:
    """Train on each document once, or on those left of an interrupted epoch, then validate.

    A fit whose loss ceases to be finite, or that is asked to end, drops out on the way.

    Args:
        pack: What the fits share.
        fits: Fits at the same step.
        on_step: Called after each step.
        check_stop: As for `fit`.
        scorer: As for `finish`.
        end_asked: Called after each step; sets `State.stopped` of fits that are to end.
    """
    ((epoch, done),) = {(fit.state.epoch + 1, fit.state.batch) for fit in fits}
    batches = fits[0].batches(epoch)
    for fit in fits:
        fit.begin_epoch(batches)
    for number, sequence_B in enumerate(batches[done:], start=done + 1):
        following_B = batches[number] if number < len(batches) else None
        nats_S, num_tokens = step(pack, fits, sequence_B, len(batches), following_B)
        fits = [fit for fit in fits if fit.state.diverged is None]
        if not fits:
            return
        on_step(StepReport(epoch, number, len(batches), sum(nats_S), len(nats_S) * num_tokens))
        sync_errors(check_stop)
        end_asked(fits)
        fits = [fit for fit in fits if fit.state.stopped is None]
        if not fits:
            return
    scores, seconds = _score_validation(pack, fits, check_stop, scorer)
    for fit, (nll_N, score_F) in zip(fits, scores, strict=True):
        fit.end_epoch()
        fit.update_best(nll_N, seconds, score_F)


def validate(
    pack: Pack, fits: Sequence[Trainer], check_stop: Callable[[], None] = no_op, scorer: Scorer | None = None
) -> None:
    """Score the validation split, and keep this epoch of the fits for which it is the best so far.

    Args:
        pack: What the fits share.
        fits: Fits at the same epoch.
        check_stop: As for `fit`.
        scorer: As for `finish`.
    """
    scores, seconds = _score_validation(pack, fits, check_stop, scorer)
    for fit, (nll_N, score_F) in zip(fits, scores, strict=True):
        fit.update_best(nll_N, seconds, score_F)


def _score_validation(
    pack: Pack, fits: Sequence[Trainer], check_stop: Callable[[], None], scorer: Scorer | None
) -> tuple[list[tuple[np.ndarray, np.ndarray | None]], float]:
    """For each fit the nats of validation and the scores that choose its epoch, and the seconds that each took."""
    started = time.perf_counter()
    nll_SN = score_documents(pack, fits, "validation", check_stop, pack.protocol.validation_batches)
    scores = [None if scorer is None else scorer.early_stopping_scores(fit, check_stop) for fit in fits]
    return list(zip(nll_SN, scores, strict=True)), (time.perf_counter() - started) / len(fits)


def finish(pack: Pack, fit: Trainer, check_stop: Callable[[], None] = no_op, scorer: Scorer | None = None) -> Fit:
    """Score validation and test at the best epoch, without padding, and take the fit's adapters.

    Args:
        pack: What the fits share.
        fit: A fit that has ended.
        check_stop: As for `fit`.
        scorer: Of metrics beside perplexity; None without them.
    """
    fit.return_to_best()
    device = pack.accelerator.device

    def score_test(make_batches: MakeBatches) -> np.ndarray:
        return score_documents(pack, [fit], "test", check_stop, make_batches)[0]

    return Fit(
        state=fit.state,
        stopped_by=fit.stopped_by,
        nll_nats={split: score_documents(pack, [fit], split, check_stop)[0] for split in ("validation", "test")},
        predictions=None if scorer is None else scorer.score(fit, check_stop),
        mean_P=fit.hierarchy.mean_P.detach().cpu(),
        theta_KP=pack.shard.gather(fit.hierarchy.theta_KP()).cpu(),
        layout=pack.layout,
        peak_memory_bytes=peak_memory_bytes(device),
        device=device_name(device),
        dtype=pack.dtype,
        base_bytes=pack.base_bytes,
        std_KP=fit.std_KP(),
        theta_GP=fit.hierarchy.theta_GP().cpu() if isinstance(fit.hierarchy, GroupedHierarchy) else None,
        reported=pack.protocol.reported(fit.state, score_test),
    )
