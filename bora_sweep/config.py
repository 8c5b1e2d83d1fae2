"""The configuration: frozen dataclasses are the schema, OmegaConf merges files and `key=value` into them.

Every value is checked where it is declared, derived values are properties, and a resolved configuration is plain YAML
that reads back to an equal one.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bora_sweep.errors import InputError

Parametrization = Literal["noncentered", "centered"]
Solver = Literal["proximal", "adamw"]
GlobalUpdate = Literal["gradient", "mean", "alternating"]
Method = Literal["map", "zero_shot", "fine_tuned", "average", "ties", "dare", "pfedme", "vi"]
Baseline = Literal["zero_shot", "independent", "shared", "fine_tuned", "average", "ties", "dare", "pfedme", "vi"]


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """The embedded family of languages (`bora_sweep.data.synthetic`)."""

    num_tasks: int = 12
    """Speakers."""
    similarity: float = 0.5
    """The dial: correlation of any two speakers' shifts away from the world language. 0: unrelated, 1: all alike."""
    shift: float = 1.8
    """How far, in logits, each speaker stands from the world language that the base model was trained on."""
    min_documents: int = 14
    """Documents of the speaker with the least text, all splits together."""
    max_documents: int = 100
    """Documents of the speaker with the most text, all splits together."""
    seed: int = 0
    """Fixes the languages, the documents and the base model."""

    def __post_init__(self) -> None:
        _need(self.seed >= 0, f"data.synthetic.seed={self.seed}: need 0 or more")
        _need(self.num_tasks >= 2, f"data.synthetic.num_tasks={self.num_tasks}: need at least 2 tasks")
        _need(0 <= self.similarity <= 1, f"data.synthetic.similarity={self.similarity}: need a value from 0 to 1")
        _need(0 <= self.shift < math.inf, f"data.synthetic.shift={self.shift}: need a finite value of 0 or more")
        _need(
            6 <= self.min_documents <= self.max_documents,
            f"data.synthetic.min_documents={self.min_documents}, max_documents={self.max_documents}: "
            "need 6 <= min_documents <= max_documents",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the text comes from, which tasks and documents are kept, and how they are split."""

    source: Literal["synthetic", "file", "hub"] | None = None
    """`synthetic`: the embedded corpus; `file`: a file or folder at `path`; `hub`: `path` is a Hugging Face data set.
    Left out: `file` where `path` is given, else `synthetic`."""
    path: str | None = None
    """A .parquet, .csv, .jsonl file (also .gz), a folder with one subfolder of .txt files per task, or a data set."""
    hub_config: str | None = None
    """Configuration name of a Hugging Face data set that has several."""
    hub_split: str = "train"
    """Which of a Hugging Face data set's own splits is read; ours are made from it."""
    text_column: str = "text"
    """Column that holds a document."""
    task_column: str = "task"
    """Column that names a document's task."""
    id_column: str | None = None
    """Column that names a document; left out: its 0-based row in the source."""
    time_column: str | None = None
    """Column by which tasks are ordered in time, each at its earliest document, for `max_tasks`."""
    min_documents: int = 6
    """Tasks with fewer documents are left out."""
    max_documents: int | None = None
    """Documents kept of each task, the first in the source's order."""
    max_tasks: int | None = None
    """Tasks kept: the first by name, or by time where `time_column` is named."""
    min_characters: int = 1
    """Shorter documents are left out."""
    max_characters: int = 100_000
    """Longer documents are cut here, and counted."""
    train_fraction: float = 0.50
    """Share of each task's documents that is trained on."""
    validation_fraction: float = 0.17
    """Share that selects the epoch and tau."""
    test_fraction: float = 0.33
    """Share that is only reported."""
    seed: int = 0
    """Fixes which document goes to which split."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    """The embedded corpus's own settings."""

    def __post_init__(self) -> None:
        _need(self.min_documents >= 3, f"data.min_documents={self.min_documents}: need at least 3, one for each split")
        _need(
            self.max_documents is None or self.max_documents >= self.min_documents,
            f"data.max_documents={self.max_documents}: need at least data.min_documents={self.min_documents}",
        )
        _need(self.max_tasks is None or self.max_tasks >= 2, f"data.max_tasks={self.max_tasks}: need at least 2 tasks")
        _need(
            0 < self.min_characters <= self.max_characters,
            f"data.min_characters={self.min_characters}: need 1 to data.max_characters={self.max_characters}",
        )
        fractions = (self.train_fraction, self.validation_fraction, self.test_fraction)
        _need(
            min(fractions) > 0 and math.isclose(sum(fractions), 1.0, abs_tol=1e-6),
            f"data.train_fraction, validation_fraction, test_fraction = {fractions}: "
            "need three parts above 0 that sum to 1",
        )
        if self.source in ("file", "hub"):
            _need(self.path is not None, f"data.source={self.source}: also give data.path=…")
        if self.source == "synthetic":
            _need(self.path is None, f"data.source=synthetic reads no file: drop data.path={self.path}, or data.source")

    @property
    def kind(self) -> Literal["synthetic", "file", "hub"]:
        """`source`, or what follows from `path` where it is left out."""
        if self.source is not None:
            return self.source
        return "synthetic" if self.path is None else "file"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The frozen base model."""

    name: str | None = None
    """A Hugging Face name or a local folder; left out with the embedded corpus: its own small OPT."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Of the base's weights; adapters, prior and moments are float32 (float64 with a float64 base)."""
    max_tokens: int = 128
    """Longest sequence, start and end symbol included; longer documents are cut, and counted."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Recorded in every result."""

    def __post_init__(self) -> None:
        _need(self.max_tokens >= 3, f"model.max_tokens={self.max_tokens}: need at least 3 (start, one token, end)")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The adapters, Eq. 3."""

    variant: Literal["lora", "rslora", "lora_plus", "dora", "mora"] = "lora"
    """`lora`: Eq. 3; `rslora`: scaled by alpha / sqrt(r); `lora_plus`: B learns faster than A; `dora`: a magnitude and
    a direction for each output; `mora`: one square matrix with as many parameters. See docs/adapters.md."""
    rank: int = 8
    """r of Eq. 3; with `mora` what its square matrix is sized by."""
    alpha: float | None = None
    """alpha of Eq. 3; left out: equal to the rank, a scale of 1 (sqrt(r) with `rslora`). `mora` has none."""
    learning_rate_ratio: float = 16.0
    """With `lora_plus` alone: the learning rate of B over that of A."""
    target_modules: list[str] | str | None = None
    """Names of modules (the last parts of their paths), one regular expression, or `all-linear`; left out: what PEFT
    adapts by default in this architecture."""

    def __post_init__(self) -> None:
        _need(self.rank >= 1, f"lora.rank={self.rank}: need at least 1")
        _need(self.alpha is None or self.alpha > 0, f"lora.alpha={self.alpha}: need a value above 0")
        _need(
            self.alpha is None or self.variant != "mora",
            f"lora.alpha={self.alpha}: lora.variant=mora has no alpha, its scale is 1; drop lora.alpha",
        )
        ratio = self.learning_rate_ratio
        _need(0 < ratio < math.inf, f"lora.learning_rate_ratio={ratio}: need a finite value above 0")

    @property
    def resolved_alpha(self) -> float:
        """alpha of Eq. 3."""
        return self.rank if self.alpha is None else self.alpha

    @property
    def scale(self) -> float:
        """alpha / r of Eq. 3, alpha / sqrt(r) with rslora."""
        return self.resolved_alpha / (math.sqrt(self.rank) if self.variant == "rslora" else self.rank)


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """The prior that ties the tasks together, Eq. 5."""

    tau: float = 100.0
    """Precision of N(theta_d; Theta, I/tau). 0: one model per task; inf: one model for all. A sweep searches it."""
    parametrization: Parametrization = "noncentered"
    """`noncentered`: theta_d = Theta + delta_d, one learning rate for every tau; `centered`: the paper's."""
    groups: Literal["all", "matrix", "layer"] = "all"
    """Parameters that have a tau of their own. `all`: one tau; `matrix`: one for all A and one for all B; `layer`: one
    for each layer. A sweep searches their scales beside tau."""
    group_scales: dict[str, float] = field(default_factory=dict)
    """Each group's tau divided by `tau`, by its name (A, B; layer_0, …); 1 where it is left out."""

    @property
    def group_taus(self) -> dict[str, float]:
        """tau of each group that has a scale, where a prior acts: 0 < tau < inf."""
        return {name: self.tau * scale for name, scale in self.group_scales.items() if 0 < self.tau < math.inf}

    def __post_init__(self) -> None:
        _need(self.tau >= 0, f"prior.tau={self.tau}: need a value from 0 to inf")  # NaN is neither
        _need(
            self.groups != "all" or not self.group_scales,
            f"prior.group_scales={self.group_scales}: also give prior.groups=matrix or layer",
        )
        for name, scale in self.group_scales.items():
            _need(0 < scale < math.inf, f"prior.group_scales.{name}={scale}: need a finite value above 0")


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
            _need(value is None or 0 < value < math.inf, f"train.{name}={value}: need a finite value above 0")
        for name, low in (("batch_size", 1), ("max_epochs", 1), ("patience", 1), ("warmup_steps", 0), ("seed", 0)):
            _need(getattr(self, name) >= low, f"train.{name}={getattr(self, name)}: need at least {low}")
        _need(
            self.micro_batch_size is None or self.micro_batch_size >= 1,
            f"train.micro_batch_size={self.micro_batch_size}: need at least 1",
        )


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Which values of tau are fitted."""

    mode: Literal["optuna", "path"] = "optuna"
    """`optuna`: separate fits, at values that Optuna chooses; `path`: one fit whose prior is loosened step by step,
    each value begun where the one above it ended, which costs far less."""
    num_trials: int = 8
    """Values of tau that the mode chooses; 0: only `taus` and the baselines."""
    taus: list[float] = field(default_factory=list)
    """Values that are fitted in any case, before the search."""
    tau_low: float = 1.0
    """Lower end of the search, log scale."""
    tau_high: float = 1e5
    """Upper end of the search, log scale."""
    lr_per_tau_low: float = 1e-6
    """Lower end of the search over `lr_per_tau`, where it is set and the parametrization is centered."""
    lr_per_tau_high: float = 1e-4
    """Upper end of the same."""
    group_scale_low: float = 1e-2
    """Lower end of the search over each of `prior.group_scales` but the first group's, where `prior.groups` is set."""
    group_scale_high: float = 1e2
    """Upper end of the same."""
    sampler: Literal["gp", "tpe", "random"] = "gp"
    """Optuna's sampler; the default is by benchmarks/sampler.py. The first values are spread evenly over log tau."""
    baselines: list[Baseline] = field(default_factory=lambda: ["zero_shot", "independent", "shared"])
    """Fixed trials beside the search. `zero_shot`: the base model as it is; `independent`: tau = 0; `shared`: tau =
    inf; `fine_tuned`: shared, then each task on its own, without a prior; `average`, `ties`, `dare`: the independent
    adapters merged into one; `pfedme`: the best tau's objective, solved by turns for the tasks and for Theta; `vi`:
    a posterior of the tasks at the best tau."""
    estimate_tau: bool = False
    """Estimate tau from the shared model's gradients, for the report. Costs about three epochs, and holds five
    gradients of each training document of a task in memory at a time."""
    ranks: list[int] = field(default_factory=list)
    """Further ranks: at each a shared model is fitted, and in mode `path` a whole path."""
    pack: int | str = 1
    """Fits of a trial that share its forward passes, the base model and the documents' order, each with a tau of its
    own: it pays where a batch does not fill the device. `auto` measures at the start how many do."""
    scheduler: Literal["none", "asha", "median"] = "none"
    """Early stopping across trials: `asha` (Li et al. 2020) and `median` end a value of tau that lags behind the others
    at the same epoch. Cheaper, and unfair to values that start slowly: large tau takes several times as many epochs."""
    grace_epochs: int = 10
    """Epochs that a scheduler grants to every fit."""
    path_patience: int = 1
    """Epochs without a better validation perplexity before a path goes on to its next tau."""
    seeds: int = 1
    """Fits of each value, with train.seed, train.seed + 1, …; the search sees their mean."""

    def __post_init__(self) -> None:
        _need(self.num_trials >= 0, f"search.num_trials={self.num_trials}: need 0 or more")
        for low, high in (
            ("tau_low", "tau_high"),
            ("lr_per_tau_low", "lr_per_tau_high"),
            ("group_scale_low", "group_scale_high"),
        ):
            a, b = getattr(self, low), getattr(self, high)
            _need(0 < a < b < math.inf, f"search.{low}={a}, search.{high}={b}: need 0 < {low} < {high} < inf")
        for tau in self.taus:
            _need(tau >= 0, f"search.taus={self.taus}: need values from 0 to inf")
        _need(
            {"independent", "shared"} <= set(self.baselines),
            f"search.baselines={self.baselines}: every sweep is judged against both independent and shared; add them",
        )
        for name in ("seeds", "path_patience", "grace_epochs"):
            _need(getattr(self, name) >= 1, f"search.{name}={getattr(self, name)}: need at least 1")
        _need(
            self.pack == "auto" or (isinstance(self.pack, int) and self.pack >= 1),
            f"search.pack={self.pack}: need a number of at least 1, or auto",
        )
        _need(min(self.ranks, default=1) >= 1, f"search.ranks={self.ranks}: need ranks of at least 1")
        _need(
            self.mode == "optuna" or not self.taus,
            f"search.taus={self.taus}: a path chooses its own values; drop them, or search.mode=path",
        )
        _need(
            self.mode == "optuna" or self.pack == 1,
            f"search.pack={self.pack}: a path fits one value after another; drop it, or search.mode=path",
        )
        _need(
            self.scheduler == "none" or (self.mode == "optuna" and self.pack == 1),
            f"search.scheduler={self.scheduler}: judges separate fits; drop it, or search.mode=path and search.pack",
        )
        _need(
            self.mode == "optuna" or self.num_trials >= 1,
            f"search.num_trials={self.num_trials}: a path needs at least 1 value",
        )
        _need(
            self.mode == "optuna" or not {"pfedme", "vi"} & set(self.baselines),
            f"search.baselines={self.baselines}: pfedme and vi take the best tau of separate fits; drop them, or "
            "search.mode=path",
        )


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Where the trials run."""

    address: str | None = None
    """`auto` or an address joins a cluster; left out: a private Ray on this machine, reachable from nowhere else."""
    workers_per_trial: int = 1
    """Processes, and so GPUs, that make one fit together, see `train.parallel`."""
    cpus_per_trial: float = 1
    """CPUs that each process of a trial reserves; torch uses as many threads."""
    gpus_per_trial: float | None = None
    """GPUs that each process of a trial reserves; a fraction shares a GPU's time and memory. Left out: 1 where Ray sees
    any, else 0."""
    max_concurrent: int | None = None
    """Trials at once; left out: as many as the resources hold."""
    max_failures: int = 2
    """How often a trial that crashed is taken up again from its last checkpoint."""
    trial_timeout: float | None = 1800.0
    """Seconds without a step after which a trial counts as crashed; left out: it may hang for ever."""

    def __post_init__(self) -> None:
        _need(self.workers_per_trial >= 1, f"ray.workers_per_trial={self.workers_per_trial}: need at least 1")
        _need(
            self.workers_per_trial == 1 or self.gpus_per_trial is None or float(self.gpus_per_trial).is_integer(),
            f"ray.gpus_per_trial={self.gpus_per_trial}: the processes of ray.workers_per_trial="
            f"{self.workers_per_trial} each need a GPU of their own; set 1",
        )
        _need(self.cpus_per_trial > 0, f"ray.cpus_per_trial={self.cpus_per_trial}: need a value above 0")
        _need(
            self.gpus_per_trial is None or self.gpus_per_trial >= 0,
            f"ray.gpus_per_trial={self.gpus_per_trial}: need 0 or more",
        )
        _need(
            self.max_concurrent is None or self.max_concurrent >= 1,
            f"ray.max_concurrent={self.max_concurrent}: need at least 1",
        )
        timeout = self.trial_timeout
        _need(timeout is None or timeout > 0, f"ray.trial_timeout={timeout}: need a value above 0")
        _need(self.max_failures >= 0, f"ray.max_failures={self.max_failures}: need 0 or more")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    init_from: str | None = None
    """Adapters that a fit begins with, for `fit` alone: a PEFT adapter's folder, or a folder of them with a
    `tasks.json` as `export` writes it. Theta and each task begin there, a task that it lacks at Theta."""
    method: Method = "map"
    """`map`: the MAP fit of Eq. 6; `vi`: a mean-field posterior of the tasks; `zero_shot`: the base model as it is; the
    others are baselines of a sweep."""
    output: str | None = None
    """The run's folder; left out: a new one under `runs/`, named by the time."""

    def __post_init__(self) -> None:
        _need(
            not (self.train.solver == "proximal" and self.prior.parametrization == "centered"),
            "train.solver=proximal needs prior.parametrization=noncentered; with centered set train.solver=adamw",
        )
        _need(
            self.train.lr_per_tau is None or self.prior.parametrization == "centered",
            f"train.lr_per_tau={self.train.lr_per_tau}: couples the learning rate to tau in centered coordinates; "
            "set prior.parametrization=centered, or drop it",
        )
        _need(
            self.search.scheduler == "none" or self.ray.workers_per_trial == 1,
            f"search.scheduler={self.search.scheduler}: stops fits of one process; set ray.workers_per_trial=1",
        )
        _need(
            self.search.pack == 1 or self.train.precision != "fp16",
            f"search.pack={self.search.pack}: fits of a pack would share fp16's loss scale; set train.precision=bf16",
        )
        _need(
            self.init_from is None or self.method in ("map", "vi", "pfedme"),
            f"init_from={self.init_from}: method={self.method} does not begin with adapters of its own; drop init_from",
        )
        workers = self.ray.workers_per_trial
        _need(
            workers == 1 or self.search.pack == 1,
            f"search.pack={self.search.pack}, ray.workers_per_trial={workers}: a fit that fills several devices gains "
            "nothing in a pack; drop one of the two",
        )
        _need(
            workers == 1 or self.train.precision != "fp16",
            f"ray.workers_per_trial={workers}: its processes would each have a loss scale of fp16; set "
            "train.precision=bf16",
        )

    @property
    def learning_rate(self) -> float:
        """`lr_per_tau * tau` where the two are coupled (paper, section 3.5), else `train.learning_rate`."""
        if self.train.lr_per_tau is None or self.prior.tau in (0, math.inf):
            return self.train.learning_rate
        return self.train.lr_per_tau * self.prior.tau

    @property
    def global_update(self) -> GlobalUpdate:
        """`train.global_update`; pFedMe alternates."""
        return "alternating" if self.method == "pfedme" else self.train.global_update

    @property
    def parallel(self) -> Literal["tasks", "data"]:
        """`train.parallel`; the draws of a posterior are of the whole bank."""
        return "data" if self.method == "vi" else self.train.parallel

    @property
    def can_be_packed(self) -> bool:
        """Whether the fit may share its forward passes with others: at tau = 0 each task has batches of its own."""
        return self.method == "map" and self.prior.tau > 0 and self.train.precision != "fp16"

    @property
    def solver(self) -> Solver:
        """`train.solver`, or what suits the parametrization where it is left out."""
        return self.train.solver or ("proximal" if self.prior.parametrization == "noncentered" else "adamw")

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """One line; inf as `Infinity`, which Python and pandas read."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    def to_yaml(self) -> str:
        """What `load_config` reads back to an equal configuration."""
        from omegaconf import OmegaConf

        return OmegaConf.to_yaml(OmegaConf.create(self.to_dict()))


def read_config(text: str) -> Config:
    """What `Config.to_json` wrote; keys that it lacks have their defaults."""
    from omegaconf import OmegaConf

    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), json.loads(text)))  # type: ignore[return-value]


def with_values(config: Config, **changes: Any) -> Config:
    """A copy with some values replaced, a section's by a dictionary: `with_values(c, prior={"tau": 0.0})`."""
    sections = {
        name: dataclasses.replace(getattr(config, name), **value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    return dataclasses.replace(config, **sections)


def load_config(arguments: Sequence[str] = (), base: Config | None = None) -> Config:
    """`base`, then YAML files, then `key=value`, merged in that order and checked.

    Args:
        arguments: Paths of YAML files and dotted `key=value` settings, as on the command line.
        base: What they are merged into; left out: the defaults.

    Raises:
        InputError: A file that cannot be read, an unknown key, a value of the wrong type or out of bounds.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    merged = OmegaConf.structured(Config if base is None else base)
    files = [argument for argument in arguments if "=" not in argument]
    settings = [argument for argument in arguments if "=" in argument]
    for source in [*files, *settings]:
        try:
            part = OmegaConf.from_dotlist([source]) if "=" in source else _load_yaml(Path(source))
            merged = OmegaConf.merge(merged, part)
        except OmegaConfBaseException as error:
            raise InputError(f"{source}: {_say(error)}") from None
    return OmegaConf.to_object(merged)  # type: ignore[return-value]


def _load_yaml(path: Path) -> Any:
    from omegaconf import DictConfig, OmegaConf
    from yaml import YAMLError

    _need(path.suffix in (".yaml", ".yml"), f"{path}: give a .yaml file or a setting such as prior.tau=100")
    try:
        loaded = OmegaConf.load(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    _need(isinstance(loaded, DictConfig), f"{path}: need sections of keys, such as `prior:` with `tau: 100` under it")
    return loaded


def _say(error: Exception) -> str:
    """OmegaConf's message without its trailing type names; an unknown key with the nearest known one."""
    return str(error).splitlines()[0]
