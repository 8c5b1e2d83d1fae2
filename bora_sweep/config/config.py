"""The whole configuration: its sections, its top-level keys, and the rules that tie sections together."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from bora_sweep.config.data import DataConfig
from bora_sweep.config.metric import ACCURACY, MetricConfig
from bora_sweep.config.model import LoraConfig, ModelConfig, PriorConfig
from bora_sweep.config.paths import expand_home, local_path
from bora_sweep.config.rules import check_rules
from bora_sweep.config.schema import build, coerce
from bora_sweep.config.search import RayConfig, SearchConfig
from bora_sweep.config.train import GlobalUpdate, Solver, TrainConfig, Update

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
        if self.model.dtype == "auto" and self.train.device == "cpu":
            object.__setattr__(self, "model", dataclasses.replace(self.model, dtype="float32"))
        check_rules(self)

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
        """Whether each group is its own fit: at tau_2 = 0, where groups are fitted."""
        return self.has_group_level and self.tau_2 == 0 and self.method != "add"

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
