"""Everything that decides a run."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from bora_sweep.config.bounds import need
from bora_sweep.config.data import DataConfig
from bora_sweep.config.model import LoraConfig, ModelConfig, PriorConfig
from bora_sweep.config.paths import expand_home, local_path
from bora_sweep.config.search import RayConfig, SearchConfig
from bora_sweep.config.train import GlobalUpdate, Solver, TrainConfig

Method = Literal["map", "zero_shot", "fine_tuned", "average", "ties", "dare", "pfedme", "vi"]
UNTRAINED = ("zero_shot", "average", "ties", "dare")
"""Methods that are scored as they are."""
Protocol = Literal["ours", "paper", "published_code"]


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
    protocol: Protocol = "ours"
    """Whose settings stand below those of files and of the command line. `ours`: the defaults; `paper`: those of the
    paper's text; `published_code`: those that its tables were made with. See docs/reproduction.md."""
    init_from: str | None = None
    """Adapters that a fit begins with, for `fit` alone: a PEFT adapter's folder, or a folder of them with a
    `tasks.json` as `export` writes it. Theta and each task begin there, a task that it lacks at Theta."""
    method: Method = "map"
    """`map`: the MAP fit of Eq. 6; `vi`: a mean-field posterior of the tasks; `zero_shot`: the base model as it is; the
    others are baselines of a sweep."""
    tracking: Literal["tensorboard", "mlflow", "wandb"] | None = None
    """Also show each trial's curves in a tracker, in the run's `tracking/`, see docs/live.md; left out: none."""
    output: str | None = None
    """The run's folder; left out: a new one under `runs/`, named by the time."""

    def __post_init__(self) -> None:
        if self.output is not None:
            object.__setattr__(self, "output", expand_home(self.output, "output"))
        if self.init_from is not None:
            object.__setattr__(self, "init_from", local_path(self.init_from, "init_from"))
        need(
            not (self.train.solver == "proximal" and self.prior.parametrization == "centered"),
            "train.solver=proximal needs prior.parametrization=noncentered; with centered set train.solver=adamw",
        )
        self._refuse_what_assumes_eq_5()
        self._refuse_what_needs_sums_over_tokens()
        need(
            self.train.lr_per_tau is None or self.prior.parametrization == "centered",
            f"train.lr_per_tau={self.train.lr_per_tau}: couples the learning rate to tau in centered coordinates; "
            "set prior.parametrization=centered, or drop it",
        )
        need(
            self.search.scheduler == "none" or self.ray.workers_per_trial == 1,
            f"search.scheduler={self.search.scheduler}: stops fits of one process; set ray.workers_per_trial=1",
        )
        need(
            self.search.pack == 1 or self.train.precision != "fp16",
            f"search.pack={self.search.pack}: fits of a pack would share fp16's loss scale; set train.precision=bf16",
        )
        need(
            self.init_from is None or self.method in ("map", "vi", "pfedme"),
            f"init_from={self.init_from}: method={self.method} does not begin with adapters of its own; drop init_from",
        )
        workers = self.ray.workers_per_trial
        need(
            workers == 1 or self.search.pack == 1,
            f"search.pack={self.search.pack}, ray.workers_per_trial={workers}: a fit that fills several devices gains "
            "nothing in a pack; drop one of the two",
        )
        need(
            workers == 1 or self.train.precision != "fp16",
            f"ray.workers_per_trial={workers}: its processes would each have a loss scale of fp16; set "
            "train.precision=bf16",
        )

    def _refuse_what_assumes_eq_5(self) -> None:
        """Solvers and methods that stand on the squared distance."""
        if self.prior.penalty == "squared":
            return
        assumed = {
            "train.solver=proximal": self.train.solver == "proximal",
            f"train.global_update={self.train.global_update}": self.train.global_update != "gradient",
            f"method={self.method}": self.method in ("vi", "pfedme"),
            f"search.baselines={self.search.baselines}": bool({"vi", "pfedme"} & set(self.search.baselines)),
            "search.estimate_tau=true": self.search.estimate_tau,
        }
        for setting, given in assumed.items():
            need(not given, f"prior.penalty={self.prior.penalty}: {setting} stands on the squared distance; drop it")

    def _refuse_what_needs_sums_over_tokens(self) -> None:
        """What is not defined, or not made, where a batch's rows count by what else is in their batch."""
        train = self.train
        unlike = {
            "train.likelihood=documents": train.likelihood == "documents",
            "train.padding=scored": train.padding == "scored",
            "train.reported=best_epochs": train.reported == "best_epochs",
            "train.independent=joint": train.independent == "joint",
        }
        refused = {
            f"ray.workers_per_trial={self.ray.workers_per_trial}": self.ray.workers_per_trial > 1,
            f"search.pack={self.search.pack}": self.search.pack != 1,
            "search.mode=path": self.search.mode == "path",
            f"method={self.method}": self.method == "vi",
            f"search.baselines={self.search.baselines}": "vi" in self.search.baselines,
            "search.estimate_tau=true": self.search.estimate_tau,
        }
        own = next((setting for setting, given in unlike.items() if given), None)
        for setting, given in refused.items():
            need(own is None or not given, f"{own}: is for separate fits of one process each; drop {setting}, or it")

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
    def is_separate(self) -> bool:
        """Whether each task is a fit of its own."""
        return self.prior.tau == 0 and self.train.independent == "separate"

    @property
    def can_be_packed(self) -> bool:
        """Whether the fit may share its forward passes with others: at tau = 0 each task has batches of its own."""
        return self.method == "map" and self.prior.tau > 0 and self.train.precision != "fp16"

    @property
    def solver(self) -> Solver:
        """`train.solver`, or what suits parametrization and penalty where it is left out."""
        if self.train.solver is not None:
            return self.train.solver
        closed_form = self.prior.parametrization == "noncentered" and self.prior.penalty == "squared"
        return "proximal" if closed_form else "adamw"

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """One line; inf as `Infinity`, which Python and pandas read."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    def to_yaml(self) -> str:
        """What `load_config` reads back to an equal configuration."""
        from bora_sweep.config.yaml import dump_yaml

        return dump_yaml(self.to_dict())


def with_values(config: Config, **changes: Any) -> Config:
    """A copy with some values replaced, a section's by a dictionary: `with_values(c, prior={"tau": 0.0})`."""
    sections = {
        name: dataclasses.replace(getattr(config, name), **value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    return dataclasses.replace(config, **sections)
