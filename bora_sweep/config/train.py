"""One fit."""

import math
from dataclasses import dataclass
from typing import Literal

from bora_sweep.config.bounds import need

Solver = Literal["proximal", "adamw"]
GlobalUpdate = Literal["gradient", "mean", "alternating"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One MAP fit, Eq. 6."""

    learning_rate: float = 3e-3
    """Adam's step size; with `lr_per_tau` only at tau = 0 and tau = inf."""
    lr_per_tau: float | None = None
    """Learning rate divided by tau, the paper's coupling for centered coordinates (Table 1: 1e-5)."""
    solver: Solver | None = None
    """`proximal`: the prior solved exactly in Adam's metric; `adamw`: the prior in the gradient. Left out: proximal in
    noncentered coordinates, adamw in centered ones and with `prior.penalty=tensor_norm`, which have no such step."""
    global_update: GlobalUpdate = "gradient"
    """How Theta moves. `gradient`: by its own gradient, with the tasks; `mean`: put at the tasks' mean, its MAP given
    them, after each step as well (in centered coordinates, instead); `alternating`: only so, and once an epoch."""
    likelihood: Literal["tokens", "documents"] = "tokens"
    """`tokens`: the sum over tokens of Eq. 4, estimated by a batch, and the objective per token; `documents`: the
    published code's, each task's mean over the tokens of its rows in a batch times its number of training documents."""
    task_weights: Literal["tokens", "tasks"] = "tokens"
    """In the training likelihood. `tokens`: each token counts alike, the paper's sum; `tasks`: each task does."""
    padding: Literal["ignored", "scored"] = "ignored"
    """`scored`: rows are filled with end tokens to the longest of their batch, and these are trained on, selected by
    and counted in what is reported, as in the published code. Such perplexities compare with no others."""
    independent: Literal["separate", "joint"] = "separate"
    """At tau = 0. `separate`: each task is a fit of its own, with its own batches, best epoch and patience; `joint`:
    batches of all tasks and one patience, the published code's, where a task that a batch lacks stands still."""
    reported: Literal["test", "best_epochs"] = "test"
    """`test`: test at the epoch that validation chose; `best_epochs`: beside it, as the published code reports, each
    task's best epoch on validation, and the lowest mean over batches of their perplexities."""
    initial_noise: float = 0.0
    """Standard deviation of the normal noise by which each task's adapter begins off Theta."""
    batch_size: int = 64
    """Documents per optimiser step."""
    batches: Literal["by_length", "fixed"] = "by_length"
    """`by_length`: drawn anew in each epoch, documents of like length together; `fixed`: drawn once, whatever their
    lengths, and the same in each epoch, as in the published code."""
    micro_batch_size: int | None = None
    """Documents per forward pass at most, gradients accumulated over a batch; left out: the whole batch. Changes no
    result."""
    max_epochs: int = 200
    """Upper bound; `patience` is what should end a fit, and one that meets this bound is marked."""
    patience: int = 5
    """Epochs without a better validation perplexity before a fit stops."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up, over `max_epochs`."""
    max_grad_norm: float | None = 1.0
    """Each task's gradient, and Theta's, is clipped to this norm on its own, so that no task scales another's step."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of the forward and backward pass."""
    compile: bool = False
    """Compile the model by torch.compile, once for all trials of a worker process; the first step takes that much
    longer."""
    device: Literal["auto", "cpu"] = "auto"
    """`auto`: the accelerator that Accelerate finds."""
    parallel: Literal["tasks", "data"] = "tasks"
    """How a fit is parted where `ray.workers_per_trial` processes make it. `tasks`: each holds some of the tasks, and
    of gradients Theta's alone passes between them; `data`: each holds all tasks and works on its part of every batch.
    Changes no result."""
    seed: int = 0
    """Fixes the adapters' initial values and the order of the documents."""
    checkpoint_minutes: float = 5.0
    """Between two checkpoints within an epoch; each epoch ends with one. A machine that is lost costs no more."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "lr_per_tau", "max_grad_norm", "checkpoint_minutes"):
            value = getattr(self, name)
            need(value is None or 0 < value < math.inf, f"train.{name}={value}: need a finite value above 0")
        for name, low in (("batch_size", 1), ("max_epochs", 1), ("patience", 1), ("warmup_steps", 0), ("seed", 0)):
            need(getattr(self, name) >= low, f"train.{name}={getattr(self, name)}: need at least {low}")
        noise = self.initial_noise
        need(0 <= noise < math.inf, f"train.initial_noise={noise}: need a finite value of 0 or more")
        need(
            self.likelihood == "tokens" or self.task_weights == "tokens",
            f"train.task_weights={self.task_weights}: train.likelihood={self.likelihood} weighs tasks by their "
            "documents; drop one of the two",
        )
        need(
            self.micro_batch_size is None or self.micro_batch_size >= 1,
            f"train.micro_batch_size={self.micro_batch_size}: need at least 1",
        )
