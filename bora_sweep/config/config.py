"""The whole configuration: its sections, its top-level keys, and the rules that tie sections together."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from bora_sweep.config.baselines import check_baselines
from bora_sweep.config.data import DataConfig
from bora_sweep.config.metric import ACCURACY, PERPLEXITY, MetricConfig, check_metric_names
from bora_sweep.config.model import LoraConfig, ModelConfig, PriorConfig
from bora_sweep.config.paths import expand_home, local_path
from bora_sweep.config.schema import build, coerce
from bora_sweep.config.search import RayConfig, SearchConfig
from bora_sweep.config.train import GlobalUpdate, Solver, TrainConfig, Update
from bora_sweep.errors import require

Method = Literal[
    "map", "zero_shot", "fine_tuned", "average", "ties", "dare", "pfedme", "vi", "fedsa", "shared_wide", "task_prompt",
    "add",
]  # fmt: skip
LEARNT_START = 300.0
"""tau with which a fit begins that learns it."""
MERGES = ("average", "ties", "dare")
"""Methods that merge the independent adapters into one, by the function of that name in
`bora_sweep.model.merge_tasks`."""
ONE_FOR_ALL = (*MERGES, "shared_wide", "task_prompt")
"""Methods that end with one adapter for all tasks."""
UNTRAINED = ("zero_shot", *MERGES)
"""Methods that train nothing: they are scored as they are."""
Protocol = Literal["ours", "paper", "published_code"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a run.

    A section is its dataclass, or a dictionary of its keys: `Config(train={"max_epochs": 3})`.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    metrics: list[str] = field(default_factory=list)
    """What validation and test are scored by beside perplexity, at each fit's best epoch. `accuracy`: whether the right
    answer is the likeliest of the candidates. `exact_match`, `rouge_l`: the generated answer beside the right one.
    `my_module:score`: a function of your own, `score(reference: str, prediction: str) -> float`; higher is better."""
    metric: MetricConfig = field(default_factory=MetricConfig)
    protocol: Protocol = "ours"
    """Which settings files and the command line start from. `ours`: the defaults. `paper`: those in the paper's text.
    `published_code`: those that made the paper's tables. See docs/reproduction.md."""
    init_from: str | None = None
    """Adapters that a fit starts from, for `fit` alone: the folder of a PEFT adapter, or a folder of several with a
    `tasks.json`, as `export` writes it. Theta and the tasks start from them. A task that has none starts from Theta."""
    method: Method = "map"
    """What a fit computes. `map`: the maximum a posteriori of Eq. 6 (`bora_sweep.model.map_objective`). `vi`: a
    mean-field posterior of the tasks. `zero_shot`: nothing, the base model is scored as it is. `pfedme`: the same
    objective as `map`, solved in turns for the tasks and for Theta. `add`: tasks that a run has not seen, under its
    prior with Theta and tau held; the command `add` sets it. The others are baselines of a sweep."""
    tracking: Literal["tensorboard", "mlflow", "wandb"] | None = None
    """A tracker that also shows each trial's curves, in the run's `tracking/`. Left out: none. See docs/live.md."""
    output: str | None = None
    """The run's folder. Left out: a new folder under `runs/`, named by the time."""

    def __post_init__(self) -> None:
        for section in dataclasses.fields(self):
            given = getattr(self, section.name)
            if dataclasses.is_dataclass(section.type) and not isinstance(given, section.type):  # type: ignore[arg-type]
                object.__setattr__(self, section.name, build(section.type, coerce(given, section.type, section.name)))
        if self.output is not None:
            object.__setattr__(self, "output", expand_home(self.output, "output"))
        if self.init_from is not None:
            object.__setattr__(self, "init_from", local_path(self.init_from, "init_from"))
        require(
            not (self.train.solver == "proximal" and self.prior.parametrization == "centered"),
            "train.solver=proximal needs prior.parametrization=noncentered; with centered set train.solver=adamw",
        )
        if self.model.dtype == "auto" and self.train.device == "cpu":
            object.__setattr__(self, "model", dataclasses.replace(self.model, dtype="float32"))
        self._check_base()
        self._check_metrics()
        self._check_penalty()
        self._check_token_sums()
        self._check_shard_base()
        self._check_chunks()
        self._check_rate()
        self._check_present()
        self._check_unseen()
        self._check_groups()
        self._check_learnt_tau()
        check_baselines(self)
        require(
            self.train.lr_per_tau is None or self.prior.parametrization == "centered",
            f"train.lr_per_tau={self.train.lr_per_tau}: couples learning rate and tau in centered coordinates only; "
            "set prior.parametrization=centered, or drop it",
        )
        require(
            self.train.lr_per_tau is None or not self.search.learning_rates,
            f"search.learning_rates={self.search.learning_rates}: train.lr_per_tau={self.train.lr_per_tau} couples the "
            "rate to tau, and is searched itself; drop one of the two",
        )
        require(
            self.search.scheduler == "none" or self.ray.workers_per_trial == 1,
            f"search.scheduler={self.search.scheduler}: works for fits of one process; set ray.workers_per_trial=1",
        )
        require(
            self.search.pack == 1 or self.train.precision != "fp16",
            f"search.pack={self.search.pack}: fits of a pack share one loss scale of fp16; set train.precision=bf16",
        )
        require(
            self.init_from is None or self.method in ("map", "vi", "pfedme"),
            f"init_from={self.init_from}: method={self.method} does not start from given adapters; drop init_from",
        )
        workers = self.ray.workers_per_trial
        require(
            workers == 1 or self.search.pack == 1,
            f"search.pack={self.search.pack}, ray.workers_per_trial={workers}: a fit that uses several devices gains "
            "nothing from a pack; drop one of the two",
        )
        require(
            workers == 1 or self.train.precision != "fp16",
            f"ray.workers_per_trial={workers}: each process would have its own loss scale of fp16; set "
            "train.precision=bf16",
        )

    def _check_base(self) -> None:
        """Refuse adapters that a quantised base cannot have, and settings that need a base on one device."""
        model = self.model
        require(
            model.quantization is None or self.lora.variant != "dora",
            f"lora.variant=dora: needs the norms of plain weights, and model.quantization={model.quantization} keeps "
            "them packed; set lora.variant=lora, or drop model.quantization",
        )
        require(
            model.quantization is None or self.train.precision not in ("bf16", "fp16"),
            f"train.precision={self.train.precision}: packed layers of model.quantization={model.quantization} compute "
            "in the type of the other weights; set model.dtype=bfloat16, and drop it",
        )
        require(
            model.dtype != "float64" or self.train.precision == "no",
            f"train.precision={self.train.precision}: is for weights in float32, and would change nothing with "
            "model.dtype=float64; drop one of the two",
        )
        needs_one_device = {
            f"ray.workers_per_trial={self.ray.workers_per_trial}": self.ray.workers_per_trial > 1,
            "train.device=cpu": self.train.device == "cpu",
            "train.compile=true": self.train.compile,
        }
        for setting, is_set in needs_one_device.items():
            require(
                model.device_map is None or not is_set,
                f"model.device_map={model.device_map}: spreads the base over the GPUs of one process, and {setting} "
                "needs it on one device; drop one of the two",
            )

    def _check_metrics(self) -> None:
        """Refuse unknown metrics, and a search for one that is not scored."""
        check_metric_names(self.metrics)
        choosers = {"search.objective": self.search.objective, "metric.early_stopping": self.metric.early_stopping}
        for key, metric in choosers.items():
            require(
                metric in (PERPLEXITY, *self.metrics),
                f"{key}={metric}: is neither {PERPLEXITY} nor one of metrics={self.metrics}; add it there",
            )
            require(
                metric == PERPLEXITY or self.search.scheduler == "none",
                f"search.scheduler={self.search.scheduler}: stops fits by their perplexity, not by {key}={metric}; "
                "drop one of the two",
            )
        require(
            self.metric.early_stopping == PERPLEXITY or self.train.reported == "test",
            f"train.reported={self.train.reported}: is chosen by perplexity, as in the published code, not by "
            f"metric.early_stopping={self.metric.early_stopping}; drop one of the two",
        )

    def _check_penalty(self) -> None:
        """Refuse solvers and methods that need the squared distance of Eq. 5, where another penalty is set."""
        if self.prior.penalty == "squared":
            return
        needs_squared = {
            "train.solver=proximal": self.train.solver == "proximal",
            f"train.global_update={self.train.global_update}": self.train.global_update != "gradient",
            f"method={self.method}": self.method in ("vi", "pfedme"),
            f"search.baselines={self.search.baselines}": bool({"vi", "pfedme"} & set(self.search.baselines)),
            "search.estimate_tau=true": self.search.estimate_tau,
        }
        for setting, is_set in needs_squared.items():
            require(not is_set, f"prior.penalty={self.prior.penalty}: {setting} needs the squared distance; drop it")

    def _check_chunks(self) -> None:
        """Refuse chunks where a setting cuts documents, or takes each as one row."""
        train, truncate, longest = self.train, self.data.truncate, self.model.max_text_tokens
        settings = {
            f"data.truncate={truncate}": truncate != "end",
            f"model.max_text_tokens={longest}": longest is not None,
            f"train.likelihood={train.likelihood}": train.likelihood == "documents",
            f"train.padding={train.padding}": train.padding == "scored",
            f"train.batches={train.batches}": train.batches == "fixed",
            f"train.reported={train.reported}": train.reported == "best_epochs",
            "search.estimate_tau=true": self.search.estimate_tau,
        }
        found = [setting for setting, is_set in settings.items() if is_set]
        go, them = ("goes", "that") if len(found) == 1 else ("go", "those")
        require(
            self.model.long_documents == "cut" or not found,
            f"model.long_documents=chunk: cuts no document, and reads a long one as several rows. {', '.join(found)} "
            f"{go} with documents that are cut, or are one row each; drop it, or drop {them}",
        )

    def _check_rate(self) -> None:
        """Refuse a range test of the learning rate where its fits would not be like those of the run."""
        train = self.train
        refused = {
            f"prior.parametrization={self.prior.parametrization}": (
                self.prior.parametrization != "noncentered",
                "one rate serves every tau in noncentered coordinates only",
            ),
            f"method={self.method}": (self.method not in ("map", "pfedme"), "is chosen by fits of method=map"),
            f"init_from={self.init_from}": (
                self.init_from is not None,
                "is chosen by fits that start without adapters",
            ),
            f"train.precision={train.precision}": (
                train.precision == "fp16",
                "fits would share one loss scale of fp16",
            ),
            "train.shard_base=true": (train.shard_base, "is chosen on a base that one process holds"),
        }
        for setting, (is_set, reason) in refused.items():
            require(
                train.learning_rate != "auto" or not is_set,
                f"train.learning_rate=auto, {setting}: {reason}; give a number",
            )

    def _check_unseen(self) -> None:
        """Refuse settings under which fits that leave tasks out cannot be made, or would have seen these tasks."""
        key, workers = f"search.unseen_folds={self.search.unseen_folds}", self.ray.workers_per_trial
        refused = {
            f"ray.workers_per_trial={workers}": (workers > 1, "fits that leave tasks out are of one process"),
            f"init_from={self.init_from}": (self.init_from is not None, "its adapters may have seen the tasks"),
            f"metric.early_stopping={self.metric.early_stopping}": (
                self.metric.early_stopping != PERPLEXITY,
                "fits that leave tasks out stop by perplexity",
            ),
        }
        for setting, (is_set, reason) in refused.items():
            require(self.search.unseen_folds is None or not is_set, f"{key}, {setting}: {reason}; drop one of the two")

    def _check_learnt_tau(self) -> None:
        """Refuse settings that need tau before the fit has found it, and task groups where only some tasks are held."""
        train, prior = self.train, self.prior
        needs_number = {
            f"prior.penalty={prior.penalty}": prior.penalty != "squared",
            f"train.lr_per_tau={train.lr_per_tau}": train.lr_per_tau is not None,
            f"train.likelihood={train.likelihood}": train.likelihood == "documents",
            f"train.padding={train.padding}": train.padding == "scored",
            f"train.reported={train.reported}": train.reported == "best_epochs",
            f"prior.tau_2={prior.tau_2}": prior.tau_2 == 0,
            f"method={self.method}": self.method != "map",
            f"search.unseen_folds={self.search.unseen_folds}": self.search.unseen_folds is not None,
        }
        for setting, is_set in needs_number.items():
            require(not (self.learns_tau and is_set), f"prior.tau=learn: {setting} needs a number; drop one of the two")
        require(
            prior.groups != "task" or self.update == "all",
            "prior.groups=task: a tau of each task needs all of them on the device; set train.update=all, or drop it",
        )

    def _check_token_sums(self) -> None:
        """Refuse settings that need an objective which is a sum over tokens, where one of the published code is set.

        With these settings the weight of a row depends on the other rows of its batch.
        """
        train = self.train
        published = {
            "train.likelihood=documents": train.likelihood == "documents",
            "train.padding=scored": train.padding == "scored",
            "train.reported=best_epochs": train.reported == "best_epochs",
            "train.independent=joint": train.independent == "joint",
        }
        needs_sums = {
            f"ray.workers_per_trial={self.ray.workers_per_trial}": self.ray.workers_per_trial > 1,
            f"search.pack={self.search.pack}": self.search.pack != 1,
            "train.learning_rate=auto": train.learning_rate == "auto",
            "search.mode=path": self.search.mode == "path",
            f"method={self.method}": self.method == "vi",
            f"search.baselines={self.search.baselines}": "vi" in self.search.baselines,
            "search.estimate_tau=true": self.search.estimate_tau,
            f"search.unseen_folds={self.search.unseen_folds}": self.search.unseen_folds is not None,
        }
        first = next((setting for setting, is_set in published.items() if is_set), None)
        for setting, is_set in needs_sums.items():
            message = f"{first}: works for separate fits of one process only; drop it, or drop {setting}"
            require(first is None or not is_set, message)

    def _check_present(self) -> None:
        """Refuse settings and methods that move every task at each step, where a step moves those of its batch."""
        train, prior = self.train, self.prior
        if self.update == "all":
            return
        needs_all = {
            f"prior.parametrization={prior.parametrization}": prior.parametrization != "noncentered",
            f"prior.penalty={prior.penalty}": prior.penalty != "squared",
            f"train.solver={train.solver}": self.solver != "proximal",
            f"train.global_update={train.global_update}": train.global_update != "gradient",
            f"train.likelihood={train.likelihood}": train.likelihood != "tokens",
            f"train.independent={train.independent}": train.independent != "separate",
            f"train.padding={train.padding}": train.padding != "ignored",
            f"train.reported={train.reported}": train.reported != "test",
            f"train.initial_noise={train.initial_noise}": train.initial_noise > 0,
            f"train.precision={train.precision}": train.precision == "fp16",
            f"method={self.method}": self.method in ("vi", "pfedme", "fedsa"),
            f"search.baselines={self.search.baselines}": bool({"vi", "pfedme", "fedsa"} & set(self.search.baselines)),
        }
        chosen = f"train.update={train.update}" if train.update else f"train.bank={train.bank}"
        for setting, is_set in needs_all.items():
            require(not is_set, f"{chosen}: moves the tasks of a batch alone, and {setting} all; drop one of the two")

    def _check_groups(self) -> None:
        """Refuse a prior on groups where there are none, and settings and methods that know of no groups."""
        data, prior, train, baselines = self.data, self.prior, self.train, self.search.baselines
        if not data.has_groups:
            require(
                prior.tau_2 in (None, math.inf),
                f"prior.tau_2={prior.tau_2}: ties groups of tasks, and there are none; also give data.group_column=… "
                "or data.groups_path=…, or drop it",
            )
            require(
                "per_group" not in baselines,
                f"search.baselines={baselines}: per_group needs groups of tasks; give data.group_column=… or "
                "data.groups_path=…, or drop it",
            )
            return
        if prior.tau_2 == math.inf and "per_group" not in baselines:
            return
        has_no_groups = {
            f"prior.parametrization={prior.parametrization}": prior.parametrization != "noncentered",
            f"prior.penalty={prior.penalty}": prior.penalty != "squared",
            f"prior.groups={prior.groups}": prior.groups != "all",
            f"train.update={self.update}": train.update == "present",
            f"train.bank={train.bank}": train.bank != "device",
            f"train.global_update={train.global_update}": train.global_update != "gradient",
            f"train.likelihood={train.likelihood}": train.likelihood != "tokens",
            f"train.independent={train.independent}": train.independent != "separate",
            f"train.padding={train.padding}": train.padding != "ignored",
            f"train.reported={train.reported}": train.reported != "test",
            f"train.batches={train.batches}": train.batches == "fixed",
            f"train.initial_noise={train.initial_noise}": train.initial_noise > 0,
            f"ray.workers_per_trial={self.ray.workers_per_trial}": self.ray.workers_per_trial > 1,
            f"search.mode={self.search.mode}": self.search.mode != "optuna",
            f"search.unseen_folds={self.search.unseen_folds}": self.search.unseen_folds is not None,
            f"method={self.method}": self.method in ("vi", "pfedme"),
            f"search.baselines={baselines}": bool({"vi", "pfedme"} & set(baselines)),
        }
        key = "data.groups_path" if data.group_column is None else "data.group_column"
        for setting, is_set in has_no_groups.items():
            require(
                not is_set,
                f"{key}: a level of groups does not go with {setting}; drop one of the two"
                + (", or set prior.tau_2=inf, with which groups do not matter" if prior.tau_2 is None else ""),
            )

    def _check_shard_base(self) -> None:
        """Refuse a sharded base in one process, and settings that a sharded base does not support."""
        if not self.train.shard_base:
            return
        workers = self.ray.workers_per_trial
        require(
            workers > 1,
            f"train.shard_base=true, ray.workers_per_trial={workers}: one process has no other to shard the base over; "
            "set more workers, or drop train.shard_base",
        )
        unsupported = {
            "train.compile=true": (self.train.compile, "would compile the gathering of weights"),
            "search.estimate_tau=true": (self.search.estimate_tau, "runs the base in one process alone"),
            f"model.quantization={self.model.quantization}": (
                self.model.quantization is not None,
                "keeps the weights packed, which cannot be sharded",
            ),
        }
        for setting, (is_set, reason) in unsupported.items():
            require(not is_set, f"train.shard_base=true: {setting} {reason}; drop one of the two")

    @property
    def tau(self) -> float:
        """`prior.tau`; where it is learnt, what the fit begins with."""
        return LEARNT_START if self.prior.tau == "learn" else self.prior.tau

    @property
    def learns_tau(self) -> bool:
        """Whether tau is found while the fit runs (`bora_sweep.train.methods.learn_tau`)."""
        return self.prior.tau == "learn"

    @property
    def learning_rate(self) -> float:
        """`lr_per_tau * tau` where the two are coupled (paper, section 3.5), else `train.learning_rate`."""
        if self.train.lr_per_tau is None or self.tau in (0, math.inf):
            assert self.train.learning_rate != "auto"
            return self.train.learning_rate
        return self.train.lr_per_tau * self.tau

    @property
    def global_update(self) -> GlobalUpdate:
        """`train.global_update`; alternating for pFedMe; with `add` nothing moves Theta, by its gradient neither."""
        if self.method == "add":
            return "gradient"
        return "alternating" if self.method == "pfedme" else self.train.global_update

    @property
    def update(self) -> Update:
        """`train.update`; left out: all with a bank on the device, else present."""
        return self.train.update or ("all" if self.train.bank == "device" else "present")

    @property
    def parallel(self) -> Literal["tasks", "data"]:
        """`train.parallel`, or data for `vi`: each draw of its posterior needs all tasks."""
        return "data" if self.method == "vi" else self.train.parallel

    @property
    def tau_2(self) -> float:
        """`prior.tau_2`; left out: tau. inf without groups."""
        if not self.data.has_groups:
            return math.inf
        return self.tau if self.prior.tau_2 is None else self.prior.tau_2

    @property
    def has_group_level(self) -> bool:
        """Whether groups have adapters Theta_g: at tau = 0 no task knows of another, at tau_2 = inf all are Theta."""
        return self.tau > 0 and self.tau_2 < math.inf

    @property
    def is_shared(self) -> bool:
        """Whether there is one adapter for all: tau = tau_2 = inf."""
        return math.isinf(self.tau) and not self.has_group_level

    @property
    def is_by_group(self) -> bool:
        """Whether each group is its own fit: at tau_2 = 0."""
        return self.has_group_level and self.tau_2 == 0

    @property
    def is_separate(self) -> bool:
        """Whether a fit is several of their own: of each group at tau_2 = 0; of each task where Theta is held, and at
        tau = 0 with `train.independent=separate`.
        """
        is_independent = self.tau == 0 and self.method != "fedsa" and self.train.independent == "separate"
        return self.is_by_group or (self.tau < math.inf and (is_independent or self.method == "add"))

    @property
    def generates_text(self) -> bool:
        """Whether a metric reads generated text: all do but `accuracy`."""
        return any(metric != ACCURACY for metric in self.metrics)

    @property
    def can_be_packed(self) -> bool:
        """Whether the fit may share its forward passes with others; separate fits have batches of their own, and where
        tau is learnt a fit has scoring of its own."""
        is_alone = self.tau == 0 or self.is_by_group or self.learns_tau
        return self.method == "map" and not is_alone and self.train.precision != "fp16"

    @property
    def solver(self) -> Solver:
        """`train.solver`; left out: proximal where the prior has a closed form, else adamw."""
        if self.train.solver is not None:
            return self.train.solver
        closed_form = self.prior.parametrization == "noncentered" and self.prior.penalty == "squared"
        return "proximal" if closed_form else "adamw"

    def to_dict(self) -> dict[str, Any]:
        """The configuration as nested dictionaries of plain values."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """The configuration as one line of JSON. inf is `Infinity`, which Python and pandas read."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    def to_yaml(self) -> str:
        """The configuration as YAML, which `load_config` reads back to an equal one."""
        from bora_sweep.config.yaml import dump_yaml

        return dump_yaml(self.to_dict())


def with_values(config: Config, **changes: Any) -> Config:
    """A copy with other values. A section takes a dictionary: `with_values(config, prior={"tau": 0.0})`."""
    sections = {
        name: dataclasses.replace(getattr(config, name), **value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    return dataclasses.replace(config, **sections)
