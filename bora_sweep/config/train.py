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
    noncentered coordinates, adamw in centered ones, which have no proximal step."""
    global_update: GlobalUpdate = "gradient"
    """How Theta moves. `gradient`: by its own gradient, with the tasks; `mean`: put at the tasks' mean, its MAP given
    them, after each step as well (in centered coordinates, instead); `alternating`: only so, and once an epoch."""
    task_weights: Literal["tokens", "tasks"] = "tokens"
    """In the training likelihood. `tokens`: each token counts alike, the paper's sum; `tasks`: each task does."""
    batch_size: int = 64
    """Documents per optimiser step."""
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
        need(
            self.micro_batch_size is None or self.micro_batch_size >= 1,
            f"train.micro_batch_size={self.micro_batch_size}: need at least 1",
        )
