"""One MAP fit of the hierarchical model, Eq. 6, on Accelerate.

The objective is J = (1/N) [sum_d nll_d - log p(theta | Theta, tau)], in nats per scored token of the training split.

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
from bora_sweep.data.tokens import TokenizedCorpus, collate, separate_batches, training_batches
from bora_sweep.model.adapters import AdaptedModel, Layout, make_layout
from bora_sweep.model.base import refuse_mismatch
from bora_sweep.model.objective import Likelihood
from bora_sweep.model.prior import Hierarchy, group_precisions
from bora_sweep.train.checkpoint import load_checkpoint, save_checkpoint
from bora_sweep.train.device import device_name, make_accelerator, peak_memory_bytes
from bora_sweep.train.evaluate import score_documents, to_device
from bora_sweep.train.optim import make_optimizer, map_step

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
UNTRAINED = ("zero_shot", "average", "ties", "dare")
PARTS = 4  # of a step at tau = 0, whose documents are of any length: rows of like length share a forward pass


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
    best_epochs: list[int] = field(default_factory=list)
    """The best epoch of the fit; at tau = 0, where tasks are fits of their own, of each task."""
    best_nll_nats: list[float] = field(default_factory=list)
    """On validation, then."""
    train_seconds: float = 0.0
    diverged: str | None = None
    """Where the loss ceased to be finite."""
    curve: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best_epoch(self) -> int:
        """The last epoch that is part of the fit."""
        return max(self.best_epochs)

    @property
    def train_tokens(self) -> int:
        """Scored tokens trained on, each as often as it was seen."""
        return sum(row["num_tokens"] for row in self.curve if row["split"] == "train")


@dataclass(frozen=True)
class Start:
    """Where another fit ended, and this one begins."""

    mean_P: Tensor
    theta_KP: Tensor
    is_candidate: bool = True
    """Whether the fit may end where it begins, should no epoch be better on validation."""


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
    std_KP: Tensor | None = None
    """Of the posterior of theta_1..K, where the method gives one."""

    @property
    def tokens_per_second(self) -> float:
        """Scored training tokens over the seconds of the epochs that were trained, validation left out."""
        return self.state.train_tokens / self.state.train_seconds if self.state.train_tokens else math.nan


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
    trainer = make_trainer(config, corpus, base)
    try:
        trainer.start(folder, start)
        while trainer.stopped_by is None:
            if not trainer.run_epoch(on_step):
                continue
            if folder is not None:
                save_checkpoint(folder, trainer.state.step, trainer.tensors(), trainer.progress())
            on_epoch(trainer.state)
        return trainer.finish()
    finally:
        trainer.adapted.detach()


def make_trainer(config: Config, corpus: TokenizedCorpus, base: PreTrainedModel) -> "Trainer":
    """The trainer of `config.method`; errors as in `fit`."""
    if config.method != "vi":
        return Trainer(config, corpus, base)
    from bora_sweep.train.variational import VariationalTrainer  # a Trainer itself

    return VariationalTrainer(config, corpus, base)


class Trainer:
    """What one fit holds while it runs."""

    def __init__(self, config: Config, corpus: TokenizedCorpus, base: PreTrainedModel) -> None:
        refuse_mismatch(base, corpus.largest_token, corpus.longest)
        self.config, self.corpus = config, corpus
        self.num_tokens = corpus.num_tokens("train")
        self.accelerator = make_accelerator(config)
        device = self.accelerator.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.layout = make_layout(base, config.lora)
        dtype = torch.promote_types(base.dtype, torch.float32)
        self.hierarchy = Hierarchy(
            self.layout.initial(base, config.train.seed, dtype).to(device),
            corpus.num_tasks,
            config.prior.tau,
            config.prior.parametrization,
            group_precisions(config.prior, self.layout, device, dtype),
            config.global_update,
        )
        self.weight_K = torch.from_numpy(task_weights(config, corpus)).to(device, dtype)
        self.adapted = AdaptedModel(base, self.layout)
        rate = learning_rates(config, self.layout).to(device, dtype)
        optimizer = make_optimizer(self.hierarchy, config.learning_rate, config.solver, self.num_tokens, rate)
        self.scheduler = make_scheduler(config, corpus, optimizer)
        likelihood = Likelihood(self.adapted, self.hierarchy)
        self.likelihood, self.optimizer = self.accelerator.prepare(likelihood, optimizer)
        self.separate = self.hierarchy.task_KP is not None and not self.hierarchy.is_tied
        fits = corpus.num_tasks if self.separate else 1
        self.state = State(best_epochs=[0] * fits, best_nll_nats=[math.inf] * fits)
        self.best = self._parameters()

    @property
    def stopped_by(self) -> str | None:
        """Why no further epoch is due, None while one is."""
        if self.config.method in UNTRAINED:
            return self.config.method
        if self.state.diverged is not None:
            return "divergence"
        if not self._improving().any():
            return "patience"
        return "max_epochs" if self.state.epoch >= self.config.train.max_epochs else None

    def _improving(self) -> np.ndarray:
        """Of each fit (at tau = 0 each task is one), whether its patience has not run out."""
        return self.state.epoch - np.array(self.state.best_epochs) < self.config.train.patience

    def start(self, folder: Path | None = None, start: Start | None = None) -> None:
        """Go on from the newest checkpoint in `folder`; without one, score the model before training, epoch 0."""
        checkpoint = None if folder is None else load_checkpoint(folder)
        if checkpoint is not None:
            self._restore(*checkpoint)
            return
        if start is not None:
            self.hierarchy.start_from_(start.mean_P, start.theta_KP)
            self.best = self._parameters()
        if start is None or start.is_candidate:
            self._validate()

    def run_epoch(self, on_step: Callable[[StepReport], None]) -> bool:
        """Train on each document once, then validate and keep the best; False where the loss ceased to be finite."""
        started = time.perf_counter()
        epoch = self.state.epoch + 1
        batches = self._batches(epoch)
        nll, tokens = 0.0, 0
        for number, document_B in enumerate(batches, start=1):
            batch_nll, batch_tokens = self._step(document_B, len(batches))
            if self.state.diverged is not None:
                return False
            nll, tokens = nll + batch_nll, tokens + batch_tokens
            on_step(StepReport(epoch, number, len(batches), batch_nll, batch_tokens))
        if self.config.global_update == "alternating":
            self.hierarchy.recenter_()
        seconds = time.perf_counter() - started
        self.state.epoch, self.state.train_seconds = epoch, self.state.train_seconds + seconds
        self._record("train", nll, tokens, seconds)
        self._validate()
        return True

    def _batches(self, epoch: int) -> list[np.ndarray]:
        train = self.config.train
        if self.separate:
            return separate_batches(self.corpus, train.batch_size, train.seed, epoch, np.flatnonzero(self._improving()))
        return training_batches(self.corpus, train.batch_size, train.seed, epoch)

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
        total, tokens = 0.0, 0
        for part_B in self._parts(document_B):
            batch = collate(self.corpus, part_B)
            rows = to_device(batch, self.accelerator.device)
            nll_B = self.likelihood(*rows)
            weight_B = self.weight_K[rows[-1]]
            self.accelerator.backward(num_batches / self.num_tokens * (weight_B * nll_B).sum())
            total, tokens = total + nll_B.sum().item(), tokens + batch.num_tokens
        if not len(document_B):  # at tau = 0: a task's step is its own, also where no task has a document for it
            for bank in self.hierarchy.parameters():
                bank.grad = torch.zeros_like(bank) if bank.requires_grad else None
        if math.isfinite(total):
            self._update()
        else:
            self.state.diverged = (
                f"the loss is {total} at step {self.state.step + 1} (epoch {self.state.epoch + 1}) with tau="
                f"{self.config.prior.tau:g} and learning rate {self.config.learning_rate:g}; lower the learning rate"
            )
        return total, tokens

    def _parts(self, document_B: np.ndarray) -> list[np.ndarray]:
        """The documents of each forward pass of a step, at tau = 0 sorted by length, so that little is padding."""
        size = self.config.train.micro_batch_size or len(document_B)
        if self.separate:
            document_B = document_B[np.argsort(np.diff(self.corpus.offsets)[document_B], kind="stable")]
            size = min(size, math.ceil(len(document_B) / PARTS))
        return [document_B[i : i + size] for i in range(0, len(document_B), max(size, 1))]

    def _update(self) -> None:
        self.accelerator.unscale_gradients(self.optimizer)
        train = self.config.train
        map_step(
            self.hierarchy,
            self.optimizer,
            self.config.solver,
            self.num_tokens,
            train.max_grad_norm,
            self.config.global_update,
        )
        if not self.accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
        self.state.step += 1

    def _validate(self) -> None:
        started = time.perf_counter()
        nll_N = self._score("validation")
        seconds = time.perf_counter() - started
        self._record("validation", float(nll_N.sum()), self.corpus.num_tokens("validation"), seconds)
        task_N = self.corpus.documents["task"].to_numpy()[self.corpus.split("validation")]
        nll_F = np.bincount(task_N if self.separate else np.zeros_like(task_N), nll_N, len(self.state.best_epochs))
        better_F = self._improving() & (nll_F < np.array(self.state.best_nll_nats))
        for index in np.flatnonzero(better_F).tolist():
            self.state.best_nll_nats[index], self.state.best_epochs[index] = float(nll_F[index]), self.state.epoch
        if self.separate and better_F.any():
            rows = torch.from_numpy(np.flatnonzero(better_F)).to(self.accelerator.device)
            self.best["task_KP"][rows] = self._parameters()["task_KP"][rows]
        elif better_F.any():
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
        names = list(self._parameters())
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


def learning_rates(config: Config, layout: Layout) -> Tensor:
    """What the learning rate is multiplied by, for each parameter or all; LoRA+ (Hayou et al. 2024): B moves faster."""
    if config.lora.variant != "lora_plus":
        return torch.ones(())
    names, index_P = layout.group_of("matrix")
    return torch.tensor([config.lora.learning_rate_ratio if name == "B" else 1.0 for name in names])[index_P]


def task_weights(config: Config, corpus: TokenizedCorpus) -> np.ndarray:
    """What a nat of each task counts in the objective, shape K.

    At tau = 0 each task is a fit of its own, per token of its own: nothing of the others is in its gradient.
    """
    documents = corpus.documents.iloc[corpus.split("train")]
    tokens_K = np.bincount(documents["task"], documents["num_tokens"], minlength=corpus.num_tasks)
    if config.prior.tau == 0:
        return tokens_K.sum() / tokens_K
    if config.train.task_weights == "tasks":
        return tokens_K.mean() / tokens_K
    return np.ones(len(tokens_K))


def make_scheduler(config: Config, corpus: TokenizedCorpus, optimizer: torch.optim.Optimizer):
    """`train.schedule` over the steps that `train.max_epochs` allows."""
    batches = math.ceil(len(corpus.split("train")) / config.train.batch_size)
    return get_scheduler(
        SCHEDULES[config.train.schedule],
        optimizer,
        num_warmup_steps=config.train.warmup_steps,
        num_training_steps=config.train.max_epochs * batches,
    )
