"""Section `train`: how one fit is trained."""

from dataclasses import dataclass
from typing import Literal

from bora_sweep.config.bounds import Count, NotNegative, Number, Positive, check_bounds
from bora_sweep.errors import require

Solver = Literal["proximal", "adamw"]
GlobalUpdate = Literal["gradient", "mean", "alternating"]
Precision = Literal["no", "tf32", "bf16", "fp16"]
Update = Literal["all", "present"]
Bank = Literal["device", "host", "disk"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One fit by maximum a posteriori, Eq. 6."""

    learning_rate: Positive | Literal["auto"] = 3e-3
    """Learning rate of Adam. With `lr_per_tau` it holds at tau = 0 and tau = inf only. `auto`: chosen at the start of a
    run by a range test on the shared fit, and written into its config.yaml. See docs/method.md."""
    lr_per_tau: Positive | None = None
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
    initial_noise: NotNegative = 0.0
    """Standard deviation of normal noise that is added to each task's adapter at the start. 0: tasks start at Theta."""
    batch_size: Count = 64
    """Documents per optimiser step; chunks, with `model.long_documents=chunk`. With `method=add`: of each task."""
    update: Update | None = None
    """Which tasks a step moves. `all`: every task; one without a document in the batch moves by Adam's momentum and by
    the prior. `present`: those of the batch, so that a step costs what they cost, however many others there are. The
    optimum is the same. Left out: all, or with another `bank` than `device` present."""
    bank: Bank = "device"
    """Where the tasks' adapters and moments are. `device`: beside the model. `host`: in the host's memory. `disk`: in
    files of this machine, below `$BORA_SWEEP_CACHE`, else `~/.cache/bora_sweep`. With host and disk the device holds
    the tasks of two batches. Results do not depend on it."""
    tasks_per_batch: Count | None = None
    """Most tasks of a batch: documents of a task come together, so that a batch fetches few rows of the bank, and are
    spread over fewer batches. Left out: documents are drawn whatever their tasks."""
    batches: Literal["by_length", "fixed"] = "by_length"
    """How batches are drawn. `by_length`: anew for each epoch, with documents of similar length together. `fixed`: once
    for all epochs, whatever the lengths, as in the published code; with `data.split=sample` from its order of documents
    too."""
    micro_batch_size: Count | None = None
    """Most documents per forward pass; gradients accumulate over the batch. Left out: the whole batch. Results do not
    depend on it."""
    max_epochs: Count = 200
    """Most epochs. `patience` should end a fit earlier; a fit that reaches this bound is marked."""
    patience: Count = 5
    """Early stopping: a fit stops after so many epochs without a better validation perplexity."""
    steps_without_validation: Number = 200
    """With `method=add` only: most steps of a task without validation documents, which ends where its objective has
    converged. See docs/method.md."""
    warmup_steps: Number = 0
    """Steps over which the learning rate rises linearly from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up, over `max_epochs`."""
    max_grad_norm: Positive | None = 1.0
    """Largest norm of a gradient. Each task's gradient and Theta's are clipped separately, so that no task changes
    another's step. null: no clipping."""
    precision: Precision = "no"
    """Precision of the products of matrices. `no`: that of the weights, and all 24 bits of float32. `tf32`: float32
    products on a GPU keep 11 bits of their factors, and are several times as fast. `bf16`, `fp16`: mixed precision of
    the forward and backward pass, for a base in float32; a base in bfloat16 (`model.dtype`) is faster."""
    gradient_checkpointing: bool = False
    """Keep only the input of each block of the base for the backward pass, and compute the rest of the block again
    there. A step takes about a third longer, and its memory grows far less with `model.max_tokens`. Results do not
    depend on it."""
    length_bucket: Count = 1
    """Pad the rows of a forward pass to a multiple of so many tokens, so that a device sees few shapes. Results do not
    depend on it."""
    pass_tokens: Count | Literal["auto"] | None = None
    """A batch of unlike lengths goes through the model in parts, where a further pass saves at least so many tokens of
    padding. Left out: 5,000 on a GPU; on a CPU as many parts as leave twelve rows to each. `auto`: measured at the
    start of a run, on the machine that fits, and written into its config.yaml. Results do not depend on it but for
    rounding."""
    compile: bool = False
    """Compile the model with torch.compile, once for all trials of a worker process. The first step then takes
    longer."""
    device: Literal["auto", "cpu"] = "auto"
    """Device of the fit. `auto`: the accelerator that Accelerate finds."""
    parallel: Literal["tasks", "data"] = "tasks"
    """How `ray.workers_per_trial` processes share a fit. `tasks`: each holds some of the tasks, and only Theta's
    gradient is all-reduced. `data`: each holds all tasks and works on its part of every batch. Results do not depend on
    it."""
    shard_base: bool = False
    """Shard the frozen base model over the `ray.workers_per_trial` processes of a fit (FSDP2), so that a base that does
    not fit on one card is trained on several. Results do not depend on it. See docs/parallel.md."""
    seed: Number = 0
    """Random seed of the adapters' initial values and the order of the documents."""
    checkpoint_minutes: Positive = 5.0
    """Most minutes of work that a lost machine loses, to within one step or the scoring of validation: a checkpoint is
    written when the last one is so old. An epoch also ends with one, but not before 50 times the seconds have passed
    that the last one took to write, so that writing takes at most 2% of a fit. These minutes come first: a checkpoint
    that takes more than a fiftieth of them takes more than 2%, such as 9% if it takes 30 seconds and they are 5."""

    def __post_init__(self) -> None:
        check_bounds(self, "train")
        tasks = self.tasks_per_batch
        require(
            tasks is None or tasks <= self.batch_size,
            f"train.tasks_per_batch={tasks}: need 1 to train.batch_size={self.batch_size}",
        )
        require(
            tasks is None or self.batches == "by_length",
            f"train.tasks_per_batch={tasks}: train.batches={self.batches} draws documents whatever their tasks; drop "
            "one of the two",
        )
        require(
            self.bank == "device" or self.update != "all",
            f"train.bank={self.bank}: holds on the device the tasks of a batch alone, and train.update=all moves every "
            "task at each step; drop train.update",
        )
        require(
            self.length_bucket == 1 or self.padding == "ignored",
            f"train.length_bucket={self.length_bucket}: train.padding={self.padding} counts padding, which it would "
            "change; drop one of the two",
        )
        require(
            self.likelihood == "tokens" or self.task_weights == "tokens",
            f"train.task_weights={self.task_weights}: train.likelihood={self.likelihood} weights tasks by their "
            "documents; drop one of the two",
        )
