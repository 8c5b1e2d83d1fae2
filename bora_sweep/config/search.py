"""Which fits a sweep makes, and where."""

import math
from dataclasses import dataclass, field
from typing import Literal

from bora_sweep.config.bounds import need

Baseline = Literal["zero_shot", "independent", "shared", "fine_tuned", "average", "ties", "dare", "pfedme", "vi"]


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
        need(self.num_trials >= 0, f"search.num_trials={self.num_trials}: need 0 or more")
        for low, high in (
            ("tau_low", "tau_high"),
            ("lr_per_tau_low", "lr_per_tau_high"),
            ("group_scale_low", "group_scale_high"),
        ):
            a, b = getattr(self, low), getattr(self, high)
            need(0 < a < b < math.inf, f"search.{low}={a}, search.{high}={b}: need 0 < {low} < {high} < inf")
        for tau in self.taus:
            need(tau >= 0, f"search.taus={self.taus}: need values from 0 to inf")
        need(
            {"independent", "shared"} <= set(self.baselines),
            f"search.baselines={self.baselines}: every sweep is judged against both independent and shared; add them",
        )
        for name in ("seeds", "path_patience", "grace_epochs"):
            need(getattr(self, name) >= 1, f"search.{name}={getattr(self, name)}: need at least 1")
        need(
            self.pack == "auto" or (isinstance(self.pack, int) and self.pack >= 1),
            f"search.pack={self.pack}: need a number of at least 1, or auto",
        )
        need(min(self.ranks, default=1) >= 1, f"search.ranks={self.ranks}: need ranks of at least 1")
        need(
            self.mode == "optuna" or not self.taus,
            f"search.taus={self.taus}: a path chooses its own values; drop them, or search.mode=path",
        )
        need(
            self.mode == "optuna" or self.pack == 1,
            f"search.pack={self.pack}: a path fits one value after another; drop it, or search.mode=path",
        )
        need(
            self.scheduler == "none" or (self.mode == "optuna" and self.pack == 1),
            f"search.scheduler={self.scheduler}: judges separate fits; drop it, or search.mode=path and search.pack",
        )
        need(
            self.mode == "optuna" or self.num_trials >= 1,
            f"search.num_trials={self.num_trials}: a path needs at least 1 value",
        )
        need(
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
        need(self.workers_per_trial >= 1, f"ray.workers_per_trial={self.workers_per_trial}: need at least 1")
        need(
            self.workers_per_trial == 1 or self.gpus_per_trial is None or float(self.gpus_per_trial).is_integer(),
            f"ray.gpus_per_trial={self.gpus_per_trial}: the processes of ray.workers_per_trial="
            f"{self.workers_per_trial} each need a GPU of their own; set 1",
        )
        need(self.cpus_per_trial > 0, f"ray.cpus_per_trial={self.cpus_per_trial}: need a value above 0")
        need(
            self.gpus_per_trial is None or self.gpus_per_trial >= 0,
            f"ray.gpus_per_trial={self.gpus_per_trial}: need 0 or more",
        )
        need(
            self.max_concurrent is None or self.max_concurrent >= 1,
            f"ray.max_concurrent={self.max_concurrent}: need at least 1",
        )
        timeout = self.trial_timeout
        need(timeout is None or timeout > 0, f"ray.trial_timeout={timeout}: need a value above 0")
        need(self.max_failures >= 0, f"ray.max_failures={self.max_failures}: need 0 or more")
