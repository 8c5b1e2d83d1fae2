"""How a fit stands while it runs, where it begins, and what it leaves.

Shapes: K adapters (one per task), P parameters of one adapter.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from bora_sweep.model.layout import Layout


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
    batch: int = 0
    """Batches of the epoch after `epoch` that were trained on; the sums of that epoch so far:"""
    nats: float = 0.0
    num_tokens: int = 0
    seconds: float = 0.0
    best_epochs: list[int] = field(default_factory=list)
    """The best epoch of the fit; at tau = 0, where tasks are fits of their own, of each task."""
    best_nll_nats: list[float] = field(default_factory=list)
    """On validation, then."""
    reported_nats: list[float] = field(default_factory=list)
    """With `train.reported=best_epochs`: of each task the best epoch's so far, a mean over its tokens and batches."""
    reported_perplexity: float = math.inf
    """Likewise of all tasks: the best epoch's so far, a mean over batches."""
    train_seconds: float = 0.0
    num_read: int = 0
    """Tokens of documents that training steps passed through the model, start symbols included."""
    num_positions: int = 0
    """The same with padding."""
    stopped: str | None = None
    """Who ended the fit from outside, to be set after an epoch."""
    diverged: str | None = None
    """Where the loss ceased to be finite."""
    micro_batch_size: int | None = None
    """Documents per forward pass, where the device's memory did not hold as many as were asked for."""
    notes: list[str] = field(default_factory=list)
    """What happened on the way that a reader of the results should know."""
    curve: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best_epoch(self) -> int:
        """The last epoch that is part of the fit."""
        return max(self.best_epochs)

    @property
    def non_padding_fraction(self) -> float:
        """Of what training steps passed through the model."""
        return self.num_read / self.num_positions if self.num_positions else math.nan

    def count(self, num_read: int, num_positions: int) -> None:
        """Note what a training step passed through the model."""
        self.num_read, self.num_positions = self.num_read + num_read, self.num_positions + num_positions

    def end_batch(self, nats: float, num_tokens: int, seconds: float) -> None:
        """Note what a step's documents were worth, and what it took."""
        self.batch, self.nats = self.batch + 1, self.nats + nats
        self.num_tokens, self.seconds = self.num_tokens + num_tokens, self.seconds + seconds

    def end_epoch(self) -> None:
        """After the last batch."""
        self.epoch, self.train_seconds = self.epoch + 1, self.train_seconds + self.seconds
        self.batch, self.nats, self.num_tokens, self.seconds = 0, 0.0, 0, 0.0

    def reorder(self, order: Sequence[int]) -> None:
        """Where a checkpoint had the tasks in another order: what is told of each, that of `order[k]` for task k."""
        for name in ("best_epochs", "best_nll_nats", "reported_nats"):
            told = getattr(self, name)
            if len(told) == len(order):
                setattr(self, name, [told[row] for row in order])
        self.notes.append("went on with the tasks in another order")

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
class Reported:
    """Perplexities as a protocol other than ours would report them; see `bora_sweep.train.methods.published`."""

    split: str
    """On which they were measured."""
    perplexity: float
    perplexity_K: np.ndarray


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
    """theta_1..K; at tau = inf all are Theta. Where several processes make the fit, all K in the first alone."""
    layout: Layout
    peak_memory_bytes: int
    device: str
    std_KP: Tensor | None = None
    """Of the posterior of theta_1..K, where the method gives one."""
    reported: Reported | None = None
    """Where the protocol reports other numbers than those of `nll_nats`."""

    @property
    def tokens_per_second(self) -> float:
        """Scored training tokens over the seconds of the epochs that were trained, validation left out."""
        return self.state.train_tokens / self.state.train_seconds if self.state.train_tokens else math.nan
