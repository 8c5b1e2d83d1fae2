"""The steps of a fit, or of a pack: fits that differ by tau and share every forward pass.

The rows of a batch are repeated once for each fit of the pack, and each repetition takes that fit's adapters. So the
base model is held and its weights are read once for all, small batches fill the device, and the fits see the same
documents in the same order: what differs between them is tau alone. A fit that ends leaves the pack, which shrinks.

Shapes: S fits of a pack, B rows, N documents.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from bora_sweep.config import Config
from bora_sweep.data.tokens import TokenizedCorpus, collate
from bora_sweep.train.checkpoint import save_checkpoint
from bora_sweep.train.device import device_name, make_accelerator, peak_memory_bytes
from bora_sweep.train.evaluate import score, score_documents
from bora_sweep.train.state import Fit, Start, State, StepReport
from bora_sweep.train.trainer import Trainer, make_trainer


@dataclass(frozen=True)
class Slot:
    """One fit of a pack."""

    config: Config
    folder: Path | None = None
    """Where a checkpoint is written after each epoch, and from where a fit that was cut off goes on."""
    start: Start | None = None
    on_epoch: Callable[[State], None] = lambda _: None
    """Called after each epoch, once its checkpoint is on disk."""


def fit(
    config: Config,
    corpus: TokenizedCorpus,
    base: PreTrainedModel,
    folder: Path | None = None,
    on_step: Callable[[StepReport], None] = lambda _: None,
    on_epoch: Callable[[State], None] = lambda _: None,
    start: Start | None = None,
) -> Fit:
    """The MAP estimate of Eq. 6, by early stopping on validation.

    A fit whose loss ceases to be finite stops there and keeps its best epoch.

    Args:
        config: What to fit; `config.prior.tau` is the precision of the prior.
        corpus: The tokenised text.
        base: The base model; it is frozen, lent for the fit and given back as it came.
        folder: Where a checkpoint is written after each epoch, and from where a fit that was cut off goes on, with the
            numbers that it would have had; None: nowhere.
        on_step: Called after each optimiser step.
        on_epoch: Called after each epoch, once its checkpoint is on disk.
        start: Where Theta and the tasks begin; None: A random, B zero, as PEFT has it.

    Raises:
        InputError: The configuration does not fit the model or the corpus.
    """
    ((_, done),) = fit_pack([Slot(config, folder, start, on_epoch)], corpus, base, on_step)
    return done


def fit_pack(
    slots: Sequence[Slot],
    corpus: TokenizedCorpus,
    base: PreTrainedModel,
    on_step: Callable[[StepReport], None] = lambda _: None,
) -> Iterator[tuple[int, Fit]]:
    """Fits that share their forward passes, each as `fit` would make it but for rounding.

    Args:
        slots: The fits; they may differ by tau, learning rate, prior and solver, not by their batches, adapters or
            precision, and those at tau = 0, or not of method `map`, are fitted alone.
        corpus: The tokenised text.
        base: As for `fit`.
        on_step: Called after each step of the pack, with the nats of all its fits.

    Yields:
        (place in `slots`, fit), in the order in which they end.
    """
    assert all(_shared(slot.config) == _shared(slots[0].config) for slot in slots)
    assert len(slots) == 1 or all(can_be_packed(slot.config) for slot in slots)
    accelerator = make_accelerator(slots[0].config)
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    running = {place: make_trainer(slot.config, corpus, base, accelerator) for place, slot in enumerate(slots)}
    try:
        new = [trainer for place, trainer in running.items() if trainer.start(slots[place].folder, slots[place].start)]
        if new:
            validate(new)
        while running:
            for place in [place for place, trainer in running.items() if trainer.stopped_by is not None]:
                yield place, finish(running[place])
                running.pop(place).adapted.detach()
            _advance(running, slots, on_step)
    finally:
        for trainer in running.values():
            trainer.adapted.detach()


def _advance(running: dict[int, Trainer], slots: Sequence[Slot], on_step: Callable[[StepReport], None]) -> None:
    """One epoch of those that are furthest behind: all of them, but where a pack was cut off between checkpoints."""
    behind = min((trainer.state.epoch for trainer in running.values()), default=0)
    pack = {place: trainer for place, trainer in running.items() if trainer.state.epoch == behind}
    if pack:
        run_epoch(list(pack.values()), on_step)
    for place, trainer in pack.items():
        if trainer.state.epoch > behind:
            if (folder := slots[place].folder) is not None:
                save_checkpoint(folder, trainer.state.step, trainer.tensors(), trainer.progress())
            slots[place].on_epoch(trainer.state)


def can_be_packed(config: Config) -> bool:
    """Whether a fit may share its forward passes with others: at tau = 0 each task has batches of its own."""
    return config.method == "map" and config.prior.tau > 0 and config.train.precision != "fp16"


def _shared(config: Config) -> tuple:
    """What the fits of a pack have in common."""
    train = config.train
    batches = train.seed, train.batch_size, train.micro_batch_size
    return config.lora, batches, train.precision, train.compile, train.device


def run_epoch(trainers: Sequence[Trainer], on_step: Callable[[StepReport], None] = lambda _: None) -> None:
    """Train on each document once, then validate; a fit whose loss ceases to be finite drops out on the way."""
    started = time.perf_counter()
    epoch = trainers[0].state.epoch + 1
    batches = trainers[0].batches(epoch)
    nats = {id(trainer): 0.0 for trainer in trainers}
    running, tokens = list(trainers), 0
    for number, document_B in enumerate(batches, start=1):
        batch_nats, batch_tokens = step(running, document_B, len(batches))
        for trainer, nll in zip(running, batch_nats, strict=True):
            nats[id(trainer)] += nll
        running = [trainer for trainer in running if trainer.state.diverged is None]
        if not running:
            return
        tokens += batch_tokens
        on_step(StepReport(epoch, number, len(batches), sum(batch_nats), len(batch_nats) * batch_tokens))
    seconds = (time.perf_counter() - started) / len(trainers)
    for trainer in running:
        trainer.end_epoch(nats[id(trainer)], tokens, seconds)
    validate(running)


def step(trainers: Sequence[Trainer], document_B: np.ndarray, num_batches: int) -> tuple[list[float], int]:
    """One optimiser step of each fit on the same documents; returns the nats of each, and the scored tokens."""
    for trainer in trainers:
        trainer.begin_step()
    accelerator, tokens = trainers[0].accelerator, 0
    nats_S = torch.zeros(len(trainers), dtype=torch.float64)
    for part_B in trainers[0].parts(document_B):
        batch = collate(trainers[0].corpus, part_B)
        nll_SB, task_B = score(trainers, batch)
        losses = [trainer.loss(nll_B, task_B, num_batches) for trainer, nll_B in zip(trainers, nll_SB, strict=True)]
        accelerator.backward(torch.stack(losses).sum())
        nats_S += nll_SB.detach().sum(dim=1).double().cpu()
        tokens += batch.num_tokens
        for trainer in trainers:
            trainer.state.count(batch)
    for trainer, nats in zip(trainers, nats_S.tolist(), strict=True):
        trainer.end_step(nats)
    return nats_S.tolist(), tokens


def validate(trainers: Sequence[Trainer]) -> None:
    """Score the validation split, and keep this epoch of the fits for which it is the best so far."""
    started = time.perf_counter()
    nll_SN = score_documents(trainers, "validation")
    seconds = (time.perf_counter() - started) / len(trainers)
    for trainer, nll_N in zip(trainers, nll_SN, strict=True):
        trainer.judge(nll_N, seconds)


def finish(trainer: Trainer) -> Fit:
    """Score validation and test at the best epoch."""
    trainer.return_to_best()
    device = trainer.accelerator.device
    return Fit(
        state=trainer.state,
        stopped_by=trainer.stopped_by,
        nll_nats={split: score_documents([trainer], split)[0] for split in ("validation", "test")},
        mean_P=trainer.hierarchy.mean_P.detach().cpu(),
        theta_KP=trainer.hierarchy.theta_KP().cpu(),
        layout=trainer.layout,
        peak_memory_bytes=peak_memory_bytes(device),
        device=device_name(device),
        std_KP=trainer.std_KP(),
    )
