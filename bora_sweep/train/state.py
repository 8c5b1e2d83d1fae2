"""The state of a fit while it runs, its starting point, and its result.

Shapes: K adapters (one per task), P parameters of one adapter.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from bora_sweep.config import Config
from bora_sweep.model.layout import Layout
from bora_sweep.runs.storage import Folder


@dataclass(frozen=True)
class StepReport:
    """What is reported after each optimiser step; nats and tokens are those of its documents."""

    epoch: int
    batch: int
    num_batches: int
    nll_nats: float
    num_tokens: int


@dataclass
class State:
    """What a checkpoint holds beside tensors. It is reported after each epoch."""

    epoch: int = 0
    step: int = 0
    batch: int = 0
    """Batches of the current epoch that were trained on; the next three are the sums of that epoch so far."""
    nats: float = 0.0
    num_tokens: int = 0
    seconds: float = 0.0
    best_epochs: list[int] = field(default_factory=list)
    """The best epoch of the fit; at tau = 0 of each task, at tau_2 = 0 of each group."""
    best_nll_nats: list[float] = field(default_factory=list)
    """The validation nats of those epochs."""
    pooled: list[bool] = field(default_factory=list)
    """At tau = 0 and tau_2 = 0: whether a task, or a group, has no validation documents, and its `best_nll_nats` are
    those of all."""
    map_nats: list[list[float]] = field(default_factory=list)
    """With `method=add`: the objective of each task without validation documents at each epoch, from the start on."""
    best_scores: list[float] = field(default_factory=list)
    """With `metric.early_stopping`: the mean of the metric on validation at those epochs."""
    reported_nats: list[float] = field(default_factory=list)
    """With `train.reported=best_epochs`: each task's lowest mean over its tokens and batches so far."""
    reported_perplexity: float = math.inf
    """The same for all tasks: the lowest mean over batches so far."""
    train_seconds: float = 0.0
    num_read: int = 0
    """Tokens that training steps passed through the model, start symbols included."""
    num_positions: int = 0
    """The same with padding."""
    stopped: str | None = None
    """The scheduler that stopped the fit early, after an epoch; `user`, where another terminal did, after any step."""
    diverged: str | None = None
    """Where the loss stopped being finite."""
    tau: float | None = None
    """Where tau is learnt: as it is now, and that of each group by its name, divided by it."""
    scales: dict[str, float] = field(default_factory=dict)
    tau_2: float | None = None
    """With a level of groups: tau_2, where it is learnt beside tau."""
    best_tau: float | None = None
    """The same at the best epoch."""
    best_scales: dict[str, float] = field(default_factory=dict)
    best_tau_2: float | None = None
    asked_tokens: int = 0
    """Where tau is learnt: scored tokens of validation that passed through the model for it."""
    micro_batch_size: int | None = None
    """Documents per forward pass, where memory did not hold as many as were asked for."""
    notes: list[str] = field(default_factory=list)
    """Events that a reader of the results should know."""
    curve: list[dict[str, Any]] = field(default_factory=list)

    @property
    def validation_nats(self) -> float:
        """Nats of the validation split, each task at its best epoch so far."""
        flags = self.pooled or [False] * len(self.best_nll_nats)
        return sum(nats for nats, pooled in zip(self.best_nll_nats, flags, strict=True) if not pooled)

    @property
    def best_epoch(self) -> int:
        """The last epoch that is part of the result."""
        return max(self.best_epochs)

    @property
    def non_padding_fraction(self) -> float:
        """The share of positions that were not padding."""
        return self.num_read / self.num_positions if self.num_positions else math.nan

    def count(self, num_read: int, num_positions: int) -> None:
        """Add the tokens of a step, without and with padding."""
        self.num_read, self.num_positions = self.num_read + num_read, self.num_positions + num_positions

    def end_batch(self, nats: float, num_tokens: int, seconds: float) -> None:
        """Add the nats, scored tokens and seconds of a step.

        Args:
            nats: Before the step.
            num_tokens: Scored tokens.
            seconds: What the step took; of a pack, this fit's part.
        """
        self.batch, self.nats = self.batch + 1, self.nats + nats
        self.num_tokens, self.seconds = self.num_tokens + num_tokens, self.seconds + seconds

    def end_epoch(self) -> None:
        """Count the epoch, and clear its sums."""
        self.epoch, self.train_seconds = self.epoch + 1, self.train_seconds + self.seconds
        self.batch, self.nats, self.num_tokens, self.seconds = 0, 0.0, 0, 0.0

    def reorder(self, order: Sequence[int], *, by_group: bool = False) -> None:
        """Reorder the per-task lists of a checkpoint: task k takes entry `order[k]`.

        Args:
            order: Of the tasks.
            by_group: Whether its fits are groups, whose order is that of their names.
        """
        of_fits = () if by_group else ("best_epochs", "best_nll_nats", "best_scores", "pooled")
        for name in (*of_fits, "reported_nats"):
            values = getattr(self, name)
            if len(values) == len(order):
                setattr(self, name, [values[row] for row in order])
        self.map_nats = [[nats_F[row] for row in order] for nats_F in self.map_nats]
        self.notes.append("went on with the tasks in another order")

    @property
    def train_tokens(self) -> int:
        """Scored tokens of all epochs of training."""
        return sum(row["num_tokens"] for row in self.curve if row["split"] == "train")


@dataclass(frozen=True)
class Start:
    """The adapters of another fit, at which this one begins."""

    mean_P: Tensor
    theta_KP: Tensor
    is_candidate: bool = True
    """Whether the fit may end where it begins, should no epoch be better on validation."""
    theta_GP: Tensor | None = None
    """Theta_g of each group of the corpus; None: the MAP given the tasks' adapters."""


def no_op(*_: object) -> None:
    """The default of callbacks."""


@dataclass(frozen=True)
class FitSpec:
    """One fit of a pack."""

    config: Config
    folder: Folder | None = None
    """The trial's folder: checkpoints are written there, and an interrupted fit resumes from there."""
    start: Start | None = None
    on_epoch: Callable[[State], None] = no_op
    """Called after each epoch."""


@dataclass(frozen=True)
class Reported:
    """Perplexities as another protocol reports them; see `bora_sweep.train.methods.published`."""

    split: str
    """The split that they were measured on."""
    perplexity: float
    perplexity_K: np.ndarray


@dataclass(frozen=True)
class Fit:
    """A fit that has ended, at its best epoch on validation."""

    state: State
    stopped_by: str | None
    nll_nats: dict[str, np.ndarray]
    """For each document of "validation" and "test", in the corpus's order."""
    mean_P: Tensor
    """Theta."""
    theta_KP: Tensor
    """theta_1..K; at tau = tau_2 = inf all are Theta. With several processes, rank 0 alone has all K."""
    layout: Layout
    peak_memory_bytes: int
    device: str
    dtype: str
    """Type of the base's weights."""
    std_KP: Tensor | None = None
    """Posterior standard deviations of theta_1..K, where the method gives them."""
    reported: Reported | None = None
    """The numbers that the protocol reports, where they are not those of `nll_nats`."""
    predictions: pd.DataFrame | None = None
    """What `bora_sweep.train.metrics.scorer.Scorer.score` returns; None without metrics."""
    theta_GP: Tensor | None = None
    """Theta_g of each group, where there are any."""
    base_bytes: int | None = None
    """Of the base's weights in memory, on all devices together."""

    @property
    def tokens_per_second(self) -> float:
        """Scored training tokens per second of training, without validation."""
        return self.state.train_tokens / self.state.train_seconds if self.state.train_tokens else math.nan
