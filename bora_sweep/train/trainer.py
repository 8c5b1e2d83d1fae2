"""One MAP fit of the hierarchical model, Eq. 6, on Accelerate.

Shapes: B rows, T tokens, K adapters (one per task), P parameters of one adapter.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, get_scheduler

from bora_sweep.config import Config
from bora_sweep.data.tokens import TokenizedCorpus, collate, training_batches
from bora_sweep.model.adapters import AdaptedModel, Layout, make_layout
from bora_sweep.model.base import refuse_mismatch
from bora_sweep.model.objective import Likelihood, map_objective
from bora_sweep.model.prior import Hierarchy
from bora_sweep.train.checkpoint import load_checkpoint, save_checkpoint
from bora_sweep.train.device import device_name, make_accelerator, peak_memory_bytes
from bora_sweep.train.evaluate import score_documents, to_device
from bora_sweep.train.optim import clip_rows_, make_optimizer

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


class DivergenceError(ArithmeticError):
    """The likelihood is no longer finite; the message says where, and what to lower."""


@dataclass(frozen=True)
class StepReport:
    """Sent after each optimiser step."""

    epoch: int
    batch: int
    num_batches: int
    nll_nats: float
    num_tokens: int


@dataclass
class State:
    """What a checkpoint holds beside tensors, and what is reported after each epoch."""

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_nll_nats: float = math.inf
    train_seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Fit:
    """A fit that has ended, at its best epoch on validation."""

    state: State
    stopped_by: str | None
    nll_nats: dict[str, np.ndarray]
    """Of each document of "validation" and "test", in the corpus's order."""
    mean_P: Tensor
    """Theta."""
    theta_KP: Tensor
    """theta_1..K; at tau = inf all are Theta."""
    layout: Layout
    peak_memory_bytes: int
    device: str

    @property
    def tokens_per_second(self) -> float:
        """Scored training tokens over the seconds of the epochs that were trained, validation left out."""
        tokens = sum(row["num_tokens"] for row in self.state.curve if row["split"] == "train")
        return tokens / self.state.train_seconds if tokens else math.nan


def fit(
    config: Config,
    corpus: TokenizedCorpus,
    base: PreTrainedModel,
    folder: Path | None = None,
    on_step: Callable[[StepReport], None] = lambda _: None,
    on_epoch: Callable[[State], None] = lambda _: None,
) -> Fit:
    """The MAP estimate of Eq. 6, by early stopping on validation.

    Args:
        config: What to fit; `config.prior.tau` is the precision of the prior.
        corpus: The tokenised text.
        base: The base model; it is frozen, lent for the fit and given back as it came.
        folder: Where a checkpoint is written after each epoch, and from where a fit that was cut off goes on, with the
            numbers that it would have had; None: nowhere.
        on_step: Called after each optimiser step.
        on_epoch: Called after each epoch, once its checkpoint is on disk.

    Raises:
        DivergenceError: The loss is not finite.
        InputError: The configuration does not fit the model or the corpus.
    """
    trainer = Trainer(config, corpus, base)
    try:
        trainer.start(folder)
        while trainer.stopped_by is None:
            trainer.run_epoch(on_step)
            if folder is not None:
                save_checkpoint(folder, trainer.state.step, trainer.tensors(), trainer.progress())
            on_epoch(trainer.state)
        return trainer.finish()
    finally:
        trainer.adapted.detach()


class Trainer:
    """What one fit holds while it runs."""

    def __init__(self, config: Config, corpus: TokenizedCorpus, base: PreTrainedModel) -> None:
        refuse_mismatch(base, corpus.largest_token, corpus.longest)
        self.config, self.corpus = config, corpus
        self.num_tokens = corpus.num_tokens("train")
        self.accelerator = make_accelerator(config)
        if self.accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.layout = make_layout(base, config.lora)
        dtype = torch.promote_types(base.dtype, torch.float32)
        initial_P = self.layout.initial(base, config.train.seed, dtype)
        self.hierarchy = Hierarchy(initial_P, corpus.num_tasks, config.prior.tau, config.prior.parametrization)
        self.adapted = AdaptedModel(base, self.layout)
        optimizer = make_optimizer(
            self.hierarchy.mean_P,
            self.hierarchy.task_KP,
            config.learning_rate,
            prior_precision=config.prior.tau / self.num_tokens if config.solver == "proximal" else None,
        )
        self.scheduler = _make_scheduler(config, corpus, optimizer)
        likelihood = Likelihood(self.adapted, self.hierarchy)
        self.likelihood, self.optimizer = self.accelerator.prepare(likelihood, optimizer)
        self.state = State()
        self.best = self._parameters()

    @property
    def stopped_by(self) -> str | None:
        """Why no further epoch is due, None while one is."""
        if self.config.method == "zero_shot":
            return "zero_shot"
        if self.state.epoch - self.state.best_epoch >= self.config.train.patience:
            return "patience"
        return "max_epochs" if self.state.epoch >= self.config.train.max_epochs else None

    def start(self, folder: Path | None) -> None:
        """Go on from the newest checkpoint in `folder`; without one, score the model before training, epoch 0."""
        checkpoint = None if folder is None else load_checkpoint(folder)
        if checkpoint is None:
            self._validate()
        else:
            self._restore(*checkpoint)

    def run_epoch(self, on_step: Callable[[StepReport], None]) -> None:
        """Train on each document once, then validate and keep the best."""
        started = time.perf_counter()
        epoch, train = self.state.epoch + 1, self.config.train
        batches = training_batches(self.corpus, train.batch_size, train.seed, epoch)
        nll, tokens = 0.0, 0
        for number, document_B in enumerate(batches, start=1):
            batch_nll, batch_tokens = self._step(document_B, len(batches))
            nll, tokens = nll + batch_nll, tokens + batch_tokens
            on_step(StepReport(epoch, number, len(batches), batch_nll, batch_tokens))
        seconds = time.perf_counter() - started
        self.state.epoch, self.state.train_seconds = epoch, self.state.train_seconds + seconds
        self._record("train", nll, tokens, seconds)
        self._validate()

    def finish(self) -> Fit:
        """Score validation and test at the best epoch."""
        self.hierarchy.load_state_dict(self.best)
        return Fit(
            state=self.state,
            stopped_by=self.stopped_by,
            nll_nats={split: self._score(split) for split in ("validation", "test")},
            mean_P=self.hierarchy.mean_P.detach().cpu(),
            theta_KP=self.hierarchy.theta_KP().cpu(),
            layout=self.layout,
            peak_memory_bytes=peak_memory_bytes(self.accelerator.device),
            device=device_name(self.accelerator.device),
        )

    def _step(self, document_B: np.ndarray, num_batches: int) -> tuple[float, int]:
        """One optimiser step; returns the batch's nats and scored tokens.

        The M batches of an epoch part the training split, so M times the nats of a batch drawn at random is an unbiased
        estimate of the sum in Eq. 4, and over an epoch the estimates average to it exactly.
        """
        size = self.config.train.micro_batch_size or len(document_B)
        total, tokens = 0.0, 0
        for i in range(0, len(document_B), size):
            batch = collate(self.corpus, document_B[i : i + size])
            nll = self.likelihood(*to_device(batch, self.accelerator.device)).sum()
            self.accelerator.backward(map_objective(num_batches * nll, 0.0, self.num_tokens))
            total, tokens = total + nll.item(), tokens + batch.num_tokens
        if not math.isfinite(total):
            raise DivergenceError(
                f"the loss is {total} at step {self.state.step + 1} (epoch {self.state.epoch + 1}) with tau="
                f"{self.config.prior.tau:g} and learning rate {self.config.learning_rate:g}; lower the learning rate"
            )
        log_prior = self.hierarchy.log_prior()
        if self.config.solver == "adamw" and log_prior.requires_grad:
            self.accelerator.backward(map_objective(0.0, log_prior, self.num_tokens))
        self._update()
        return total, tokens

    def _update(self) -> None:
        self.accelerator.unscale_gradients(self.optimizer)
        if self.config.train.max_grad_norm is not None:
            for bank in self.hierarchy.parameters():
                if bank.grad is not None:
                    clip_rows_(bank.grad, self.config.train.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not self.accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
        self.state.step += 1

    def _validate(self) -> None:
        started = time.perf_counter()
        nll = float(self._score("validation").sum())
        self._record("validation", nll, self.corpus.num_tokens("validation"), time.perf_counter() - started)
        if nll < self.state.best_nll_nats:
            self.state.best_nll_nats, self.state.best_epoch = nll, self.state.epoch
            self.best = self._parameters()

    def _score(self, split: str) -> np.ndarray:
        size = 2 * (self.config.train.micro_batch_size or self.config.train.batch_size)  # no gradients to hold
        return score_documents(self.likelihood, self.corpus, split, size, self.accelerator.device)

    def _record(self, split: str, nll: float, tokens: int, seconds: float) -> None:
        self.state.curve.append(
            {
                "epoch": self.state.epoch,
                "step": self.state.step,
                "split": split,
                "nll_nats": nll,
                "num_tokens": tokens,
                "log_prior": self.hierarchy.log_prior().item(),
                "learning_rate": self.scheduler.get_last_lr()[0],
                "seconds": seconds,
            }
        )

    def _parameters(self) -> dict[str, Tensor]:
        return {name: bank.detach().clone() for name, bank in self.hierarchy.named_parameters()}

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that a resume needs: parameters now and at the best epoch, and Adam's moments."""
        moments = {
            f"optimizer.{index}.{name}": value
            for index, moment in self.optimizer.state_dict()["state"].items()
            for name, value in moment.items()
        }
        best = {f"best.{name}": bank for name, bank in self.best.items()}
        return {**self._parameters(), **best, **moments}

    def progress(self) -> dict[str, Any]:
        """All else that a resume needs, as JSON."""
        scaler = self.accelerator.scaler
        return {
            "state": asdict(self.state),
            "scheduler": self.scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def _restore(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        self.state = State(**progress["state"])
        names = [name for name, _ in self.hierarchy.named_parameters()]
        self.hierarchy.load_state_dict({name: tensors[name] for name in names})
        self.best = {name: tensors[f"best.{name}"].to(self.accelerator.device) for name in names}
        moments: dict[int, dict[str, Tensor]] = {}
        for key in (key for key in tensors if key.startswith("optimizer.")):
            _, index, name = key.split(".")
            moments.setdefault(int(index), {})[name] = tensors[key]
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.scheduler.load_state_dict(progress["scheduler"])
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(progress["scaler"])


def _make_scheduler(config: Config, corpus: TokenizedCorpus, optimizer: torch.optim.Optimizer):
    batches = math.ceil(len(corpus.split("train")) / config.train.batch_size)
    return get_scheduler(
        SCHEDULES[config.train.schedule],
        optimizer,
        num_warmup_steps=config.train.warmup_steps,
        num_training_steps=config.train.max_epochs * batches,
    )
