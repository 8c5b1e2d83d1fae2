"""Section `train`: how one fit is trained."""

import math
from dataclasses import dataclass
from typing import Literal

from bora_sweep.errors import require

Solver = Literal["proximal", "adamw"]
GlobalUpdate = Literal["gradient", "mean", "alternating"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One fit by maximum a posteriori, Eq. 6."""

    learning_rate: float = 3e-3
    """Learning rate of Adam. With `lr_per_tau` it holds at tau = 0 and tau = inf only."""
    lr_per_tau: float | None = None
    """Learning rate divided by tau: the paper couples them in centered coordinates (Table 1: 1e-5). Left out: one
    learning rate for every tau."""
    solver: Solver | None = None
    """How a step handles the prior. `proximal`: an exact step in Adam's metric. `adamw`: the prior is part of the
    gradient. Left out: proximal in noncentered coordinates; adamw in centered ones and with
    `prior.penalty=tensor_norm`, for which there is no proximal step."""
    global_update: GlobalUpdate = "gradient"
    """How Theta is updated. `gradient`: by its own gradient, together with the tasks. `mean`: also set to the mean of
    the tasks, which maximises the prior given them, after each step (in centered coordinates: instead of the gradient).
    `alternating`: set to that mean once an epoch, and never by gradient."""
    likelihood: Literal["tokens", "documents"] = "tokens"
    """The likelihood in the objective. `tokens`: Eq. 4, a sum over tokens that each batch estimates; the objective is
    per token. `documents`: that of the published code, for each task the mean over its tokens in the batch, times its
    number of training documents."""
    task_weights: Literal["tokens", "tasks"] = "tokens"
    """What counts equally in the training likelihood. `tokens`: each token, as in the paper. `tasks`: each task."""
    padding: Literal["ignored", "scored"] = "ignored"
    """Whether padding counts. `ignored`: no. `scored`: as in the published code, rows are padded with end tokens to the
    longest of their batch, and these tokens count in training, in selection and in reported scores. Such perplexities
    are not comparable with others."""
    independent: Literal["separate", "joint"] = "separate"
    """How tasks are fitted at tau = 0. `separate`: each on its own, with its own batches, best epoch and patience.
    `joint`: as in the published code, with batches of all tasks and one patience; a batch without a task leaves that
    task unchanged."""
    reported: Literal["test", "best_epochs"] = "test"
    """Which scores are reported. `test`: the test split, at the epoch that validation chose. `best_epochs`: also what
    the published code reports, on validation: for each task its best epoch, and overall the lowest mean over batches of
    their perplexities."""
    initial_noise: float = 0.0
    """Standard deviation of normal noise that is added to each task's adapter at the start. 0: tasks start at Theta."""
    batch_size: int = 64
    """Documents per optimiser step; chunks, with `model.long_documents=chunk`."""
    batches: Literal["by_length", "fixed"] = "by_length"
    """How batches are drawn. `by_length`: anew for each epoch, with documents of similar length together. `fixed`: once
    for all epochs, whatever the lengths, as in the published code."""
    micro_batch_size: int | None = None
    """Most documents per forward pass; gradients accumulate over the batch. Left out: the whole batch. Results do not
    depend on it."""
    max_epochs: int = 200
    """Most epochs. `patience` should end a fit earlier; a fit that reaches this bound is marked."""
    patience: int = 5
    """Early stopping: a fit stops after so many epochs without a better validation perplexity."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up, over `max_epochs`."""
    max_grad_norm: float | None = 1.0
    """Largest norm of a gradient. Each task's gradient and Theta's are clipped separately, so that no task changes
    another's step. null: no clipping."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of the forward and backward pass."""
    compile: bool = False
    """Compile the model with torch.compile, once for all trials of a worker process. The first step then takes
    longer."""
    device: Literal["auto", "cpu"] = "auto"
    """Device of the fit. `auto`: the accelerator that Accelerate finds."""
    parallel: Literal["tasks", "data"] = "tasks"
    """How `ray.workers_per_trial` processes share a fit. `tasks`: each holds some of the tasks, and only Theta's
    gradient is all-reduced. `data`: each holds all tasks and works on its part of every batch. Results do not depend on
    it."""
    seed: int = 0
    """Random seed of the adapters' initial values and the order of the documents."""
    checkpoint_minutes: float = 5.0
    """Minutes between two checkpoints within an epoch; each epoch also ends with one. A lost machine loses no more work
    than this."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "lr_per_tau", "max_grad_norm", "checkpoint_minutes"):
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, f"train.{name}={value}: need a finite value above 0")
        for name, low in (("batch_size", 1), ("max_epochs", 1), ("patience", 1), ("warmup_steps", 0), ("seed", 0)):
            require(getattr(self, name) >= low, f"train.{name}={getattr(self, name)}: need at least {low}")
        noise = self.initial_noise
        require(0 <= noise < math.inf, f"train.initial_noise={noise}: need a finite value of 0 or more")
        require(
            self.likelihood == "tokens" or self.task_weights == "tokens",
            f"train.task_weights={self.task_weights}: train.likelihood={self.likelihood} weights tasks by their "
            "documents; drop one of the two",
        )
        require(
            self.micro_batch_size is None or self.micro_batch_size >= 1,
            f"train.micro_batch_size={self.micro_batch_size}: need at least 1",
        )
