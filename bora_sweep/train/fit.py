"""The steps of a fit, or of a pack: fits that differ by tau and share every forward pass.

The rows of a batch are repeated once for each fit of the pack, and each repetition takes that fit's adapters. So the
base model is held and its weights are read once for all, small batches fill the device, and the fits see the same
documents in the same order: what differs between them is tau alone. A fit that ends leaves the pack, which shrinks.

Shapes: S fits of a pack, B rows, N documents.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bora_sweep.config import Config
from bora_sweep.data.batches import collate
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.process import Interrupted
from bora_sweep.runs.storage import Folder
from bora_sweep.train.checkpoint import save_checkpoint
from bora_sweep.train.device import device_name, make_accelerator, peak_memory_bytes, refuse_other_count
from bora_sweep.train.distributed.process_group import from_rank_zero, sum_, sync_errors
from bora_sweep.train.evaluate import retry_on_oom, score, score_documents
from bora_sweep.train.make_trainer import make_trainer
from bora_sweep.train.methods.published import ScoredSplit
from bora_sweep.train.state import Fit, Reported, Start, State, StepReport
from bora_sweep.train.trainer import Trainer

CHECKPOINT_SECONDS = 1.0
"""An epoch that ends sooner than this after the last checkpoint has none: a short one would spend its time on it."""


def no_op(*_: object) -> None:
    """What is called where nobody listens."""


@dataclass(frozen=True)
class FitSpec:
    """One fit of a pack."""

    config: Config
    folder: Folder | None = None
    """Where checkpoints are written, and from where a fit that was cut off goes on."""
    start: Start | None = None
    on_epoch: Callable[[State], None] = no_op
    """Called after each epoch."""


def fit(
    config: Config,
    corpus: TokenizedCorpus,
    base: PreTrainedModel,
    folder: Folder | None = None,
    on_step: Callable[[StepReport], None] = no_op,
    on_epoch: Callable[[State], None] = no_op,
    start: Start | None = None,
    check_stop: Callable[[], None] = no_op,
) -> Fit:
    """The MAP estimate of Eq. 6, by early stopping on validation.

    A fit whose loss ceases to be finite stops there and keeps its best epoch. One that does not fit in the device's
    memory goes on with fewer documents in a forward pass, and as many in a step.

    Args:
        config: What to fit; `config.prior.tau` is the precision of the prior.
        corpus: The tokenised text.
        base: The base model; it is frozen, lent for the fit and given back as it came.
        folder: Where a checkpoint is written after each epoch (but see `CHECKPOINT_SECONDS`) and every
            `train.checkpoint_minutes`, and from where a fit that was cut off goes on, with the numbers that it would
            have had; None: nowhere.
        on_step: Called after each optimiser step.
        on_epoch: Called after each epoch.
        start: Where Theta and the tasks begin; None: A random, B zero, as PEFT has it.
        check_stop: Called after each step and each batch that is scored; where it raises `Interrupted`, a checkpoint is
            written first.

    Raises:
        InputError: The configuration does not fit the model or the corpus.
        Interrupted: `check_stop` raised it.
    """
    ((_, done),) = fit_pack([FitSpec(config, folder, start, on_epoch)], corpus, base, on_step, check_stop)
    return done


def fit_pack(
    specs: Sequence[FitSpec],
    corpus: TokenizedCorpus,
    base: PreTrainedModel,
    on_step: Callable[[StepReport], None] = no_op,
    check_stop: Callable[[], None] = no_op,
) -> Iterator[tuple[int, Fit]]:
    """Fits that share their forward passes, each as `fit` would make it but for rounding.

    Args:
        slots: The fits; they may differ by tau, learning rate, prior and solver, not by their batches, adapters or
            precision, and those that `Config.can_be_packed` denies are fitted alone.
        corpus: The tokenised text.
        base: As for `fit`.
        on_step: Called after each step of the pack, with the nats of all its fits.
        check_stop: As for `fit`.

    Yields:
        (place in `specs`, fit), in the order in which they end.
    """
    assert all(_shared(slot.config) == _shared(specs[0].config) for slot in specs)
    assert len(specs) == 1 or all(slot.config.can_be_packed for slot in specs)
    refuse_other_count(specs[0].config)
    accelerator = make_accelerator(specs[0].config)
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    running = {place: make_trainer(slot.config, corpus, base, accelerator) for place, slot in enumerate(specs)}
    checkpoints = _Checkpoints(specs)
    try:
        new = [trainer for place, trainer in running.items() if trainer.start(specs[place].folder, specs[place].start)]
        if new:
            validate(new, check_stop)
        while running:
            for place in [place for place, trainer in running.items() if trainer.stopped_by is not None]:
                yield place, finish(running[place], check_stop)
                running.pop(place).adapted.remove_hooks()
            if running:
                _advance(running, specs, checkpoints, on_step, check_stop)
    finally:
        for trainer in running.values():
            trainer.adapted.remove_hooks()


class _Checkpoints:
    """Of the fits of a pack: those that are behind the same step are saved together."""

    def __init__(self, specs: Sequence[FitSpec]) -> None:
        self.specs, self.saved_at = specs, time.monotonic()

    def is_due(self, seconds: float) -> bool:
        """Whether the last was that long ago; all processes of a fit are of one mind."""
        return from_rank_zero(lambda: time.monotonic() - self.saved_at >= seconds)

    def save(self, pack: dict[int, Trainer]) -> None:
        self.saved_at = time.monotonic()
        for place, trainer in pack.items():
            if (folder := self.specs[place].folder) is not None and trainer.state.diverged is None:
                content = trainer.state.step, trainer.tensors(), trainer.progress()
                from_rank_zero(partial(save_checkpoint, folder, *content))


def _advance(
    running: dict[int, Trainer],
    specs: Sequence[FitSpec],
    checkpoints: _Checkpoints,
    on_step: Callable[[StepReport], None],
    check_stop: Callable[[], None],
) -> None:
    """To the end of the epoch of those furthest behind: all, but where a pack was cut off between checkpoints."""
    behind = min((trainer.state.epoch, trainer.state.batch) for trainer in running.values())
    pack = {
        place: trainer for place, trainer in running.items() if (trainer.state.epoch, trainer.state.batch) == behind
    }

    def stepped(report: StepReport) -> None:
        on_step(report)
        if checkpoints.is_due(60 * specs[0].config.train.checkpoint_minutes):
            checkpoints.save(pack)

    try:
        run_epoch(list(pack.values()), stepped, check_stop)
    except Interrupted:
        checkpoints.save(pack)
        raise
    if checkpoints.is_due(CHECKPOINT_SECONDS):
        checkpoints.save(pack)
    for place, trainer in pack.items():
        if trainer.state.diverged is None:
            specs[place].on_epoch(trainer.state)


def _shared(config: Config) -> tuple:
    """What the fits of a pack have in common."""
    train = config.train
    batches = train.seed, train.batch_size, train.micro_batch_size, train.batches
    return config.lora, batches, train.precision, train.compile, train.device


def run_epoch(
    trainers: Sequence[Trainer],
    on_step: Callable[[StepReport], None] = no_op,
    check_stop: Callable[[], None] = no_op,
) -> None:
    """Train on each document once, or on those left of an epoch that was cut off, then validate.

    A fit whose loss ceases to be finite drops out on the way.
    """
    epoch, done = trainers[0].state.epoch + 1, trainers[0].state.batch
    batches = trainers[0].batches(epoch)
    running = list(trainers)
    for number, document_B in enumerate(batches[done:], start=done + 1):
        nats, tokens = step(running, document_B, len(batches))
        running = [trainer for trainer in running if trainer.state.diverged is None]
        if not running:
            return
        on_step(StepReport(epoch, number, len(batches), sum(nats), len(nats) * tokens))
        sync_errors(check_stop)
    nll_SN, seconds = timed_scores(running, check_stop)
    for trainer, nll_N in zip(running, nll_SN, strict=True):
        trainer.end_epoch()
        trainer.update_best(nll_N, seconds)


def step(trainers: Sequence[Trainer], document_B: np.ndarray, num_batches: int) -> tuple[list[float], int]:
    """One optimiser step of each fit on the same documents; returns the nats of each, and the scored tokens."""
    started = time.perf_counter()
    for trainer in trainers:
        trainer.begin_step()
    own = retry_on_oom(trainers, lambda: _gradients(trainers, document_B, num_batches))
    *nats, tokens, num_read, num_positions = sum_(torch.cat(own)).tolist()
    for trainer, nll in zip(trainers, nats, strict=True):
        trainer.end_step(nll)
    seconds = (time.perf_counter() - started) / len(trainers)
    for trainer, nll in zip(trainers, nats, strict=True):
        trainer.state.end_batch(nll, int(tokens), seconds)
        trainer.state.count(int(num_read), int(num_positions))
    return nats, int(tokens)


def _gradients(trainers: Sequence[Trainer], document_B: np.ndarray, num_batches: int) -> tuple[Tensor, Tensor]:
    """Add the gradients of this process's part of the batch to those of the banks.

    Returns:
        Nats of each fit; scored tokens, tokens, and tokens with padding.
    """
    accelerator = trainers[0].accelerator
    nats_S = torch.zeros(len(trainers), dtype=torch.float64)
    corpus, width = trainers[0].corpus, trainers[0].width(document_B)
    batches = [collate(corpus, part_B, width) for part_B in trainers[0].parts(document_B)]
    weights = [trainer.weights(document_B, num_batches) for trainer in trainers]
    for batch in batches:
        nll_SB, task_B = score(trainers, batch)
        fits = zip(trainers, nll_SB, weights, strict=True)
        losses = [trainer.loss(nll_B, task_B, *weight) for trainer, nll_B, weight in fits]
        accelerator.backward(torch.stack(losses).sum())
        nats_S += nll_SB.detach().sum(dim=1).double().cpu()
    sizes = [(batch.num_tokens, batch.length_B.sum(), batch.tokens_BT.size) for batch in batches]
    return nats_S, torch.from_numpy(np.array(sizes, dtype=np.float64).reshape(-1, 3).sum(0))


def validate(trainers: Sequence[Trainer], check_stop: Callable[[], None] = no_op) -> None:
    """Score the validation split, and keep this epoch of the fits for which it is the best so far."""
    nll_SN, seconds = timed_scores(trainers, check_stop)
    for trainer, nll_N in zip(trainers, nll_SN, strict=True):
        trainer.update_best(nll_N, seconds)


def timed_scores(trainers: Sequence[Trainer], check_stop: Callable[[], None] = no_op) -> tuple[np.ndarray, float]:
    """Nats of the validation split, nll_SN, and the seconds that each fit's took."""
    started = time.perf_counter()
    padded = trainers[0].validation.batches if trainers[0].validation.scores_padding else None
    nll_SN = score_documents(trainers, "validation", check_stop, padded)
    return nll_SN, (time.perf_counter() - started) / len(trainers)


def finish(trainer: Trainer, check_stop: Callable[[], None] = no_op) -> Fit:
    """Score validation and test at the best epoch, padding never counted; what a protocol reports stands beside it."""
    trainer.return_to_best()
    device = trainer.accelerator.device
    return Fit(
        state=trainer.state,
        stopped_by=trainer.stopped_by,
        nll_nats={split: score_documents([trainer], split, check_stop)[0] for split in ("validation", "test")},
        mean_P=trainer.hierarchy.mean_P.detach().cpu(),
        theta_KP=trainer.share.whole(trainer.hierarchy.theta_KP()).cpu(),
        layout=trainer.layout,
        peak_memory_bytes=peak_memory_bytes(device),
        device=device_name(device),
        std_KP=trainer.std_KP(),
        reported=_reported(trainer, check_stop),
    )


def _reported(trainer: Trainer, check_stop: Callable[[], None]) -> Reported | None:
    """What the protocol reports, where that is not the perplexity of test."""
    train, state = trainer.config.train, trainer.state
    if train.reported == "best_epochs":
        nats_K = np.array(state.reported_nats)  # none, where a fit has diverged within its first epoch
        return Reported("validation", state.reported_perplexity, np.exp(nats_K)) if len(nats_K) else None
    if train.padding == "ignored":
        return None
    test = ScoredSplit(trainer.corpus, "test", train)
    return test.sums(score_documents([trainer], "test", check_stop, test.batches)[0])
