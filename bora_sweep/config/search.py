"""Sections `search` and `ray`: which fits a sweep makes, and on which resources."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from bora_sweep.config.bounds import Bounds, Count, NotNegative, Number, Positive, Several, Tau, check_bounds
from bora_sweep.config.template import check_template
from bora_sweep.errors import require

Baseline = Literal[
    "zero_shot", "independent", "shared", "per_group", "learnt", "fine_tuned", "average", "ties", "dare", "pfedme",
    "vi", "fedsa", "shared_wide", "task_prompt",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Which values of tau a sweep fits, and which baselines."""

    mode: Literal["optuna", "path"] = "optuna"
    """How values of tau are fitted. `optuna`: a separate fit at each value, and Optuna chooses the values. `path`: one
    fit from large to small tau, where each value starts from the adapters of the one above; this costs far less."""
    num_trials: Number = 8
    """Number of values of tau that the mode chooses. 0: only `taus` and the baselines are fitted."""
    taus: list[Tau] = field(default_factory=list)
    """Values of tau that are fitted in any case, before the search."""
    tau_low: Positive = 1.0
    """Lower end of the search over tau, on a log scale."""
    tau_high: Positive = 1e5
    """Upper end of the search over tau, on a log scale."""
    tau_2_low: Positive = 1.0
    """Lower end of the search over `prior.tau_2`, which is searched where tasks are in groups and it is left out."""
    tau_2_high: Positive = 1e5
    """Upper end of the search over `prior.tau_2`."""
    lr_per_tau_low: Positive = 1e-6
    """Lower end of the search over `train.lr_per_tau`, which is searched if it is set and coordinates are centered."""
    lr_per_tau_high: Positive = 1e-4
    """Upper end of the search over `train.lr_per_tau`."""
    learning_rates: list[Positive] = field(default_factory=list)
    """Learning rates beside `train.learning_rate`: searched with tau, and the baselines `independent` and `shared` are
    fitted at each. Of fits that differ by it alone, the best on validation counts in the report."""
    group_scale_low: Positive = 1e-2
    """Lower end of the search over `prior.group_scales`, with `prior.groups`. The first group's scale is not
    searched."""
    group_scale_high: Positive = 1e2
    """Upper end of the search over `prior.group_scales`."""
    sampler: Literal["gp", "tpe", "random"] = "gp"
    """Optuna's sampler. The first values are spread evenly over log tau. benchmarks/sampler.py compares the
    samplers."""
    objective: str = "perplexity"
    """What chooses tau, on validation: `perplexity`, or one of `metrics`, of which the highest mean over documents is
    best. Early stopping stays on perplexity, but for `metric.early_stopping`."""
    baselines: list[Baseline] = field(default_factory=lambda: ["zero_shot", "independent", "shared"])
    """Trials beside the search. `zero_shot`: the base model as it is. `independent`: tau = 0. `shared`: tau = inf.
    `per_group`: one adapter for each group of tasks, which know nothing of each other. `learnt`: a fit that finds tau
    itself (`prior.tau=learn`); with `num_trials=0` it takes the place of the search. `fine_tuned`: shared, then each
    task on its own without a prior. `average`, `ties`, `dare`: the independent adapters merged into one. `pfedme`: the
    objective at the best tau, solved in turns for the tasks and for Theta. `vi`: a posterior of the tasks at the best
    tau. `fedsa`: A shared, and a B for each task, without a prior. `shared_wide`: one adapter for all, of rank
    `wide_rank`. `task_prompt`: one adapter for all, with `task_prompt` before each text."""
    wide_rank: Count | None = None
    """Rank of the baseline `shared_wide`. Left out: the number of tasks times `lora.rank`, so that it has as many
    parameters as the adapters of all tasks together, but no more than an adapted module's matrix can have."""
    task_prompt: str = "{task}:\n"
    """With the baseline `task_prompt`: what is given before each text and not scored. `{task}` is the task's name."""
    estimate_tau: bool = False
    """Also estimate tau from the gradients of the shared model, for the report. This takes about three epochs. It keeps
    four gradients of each training document of a task in memory, up to 4 GiB of them (1 GiB on a CPU). A task with b
    times as much takes (b + 1) / 2 times as long."""
    unseen_folds: Several | None = None
    """Also measure what a task without any text can expect: with so many folds of the tasks, each fold is left out of a
    further fit at the best tau, and scored under its Theta. With as many folds as tasks, or more, each task is left out
    alone. It costs so many fits, less the text left out; with several seeds, of the first. `fit` makes them at its own
    tau. Left out: none."""
    ranks: list[Count] = field(default_factory=list)
    """Further ranks. At each a shared model is fitted, and in mode `path` a whole path."""
    pack: Count | Literal["auto"] = 1
    """Number of fits, each with its own tau, that share the base model, the forward passes and the order of
    the documents. This saves time where one batch does not fill the device. `auto`: measured at the start."""
    scheduler: Literal["none", "asha", "median"] = "none"
    """Early stopping across trials. `asha` (Li et al. 2020) and `median` stop a value of tau that is behind the others
    at the same epoch. This is cheaper, but unfair to values that start slowly: large tau takes several times as many
    epochs."""
    grace_epochs: Count = 10
    """Epochs that the scheduler gives every fit before it may stop it."""
    path_patience: Count = 1
    """Epochs without a better validation perplexity before a path moves to its next tau."""
    seeds: Count = 1
    """Fits per value of tau, with train.seed, train.seed + 1, …; the search uses their mean."""

    def __post_init__(self) -> None:
        check_bounds(self, "search")
        for low, high in (
            ("tau_low", "tau_high"),
            ("tau_2_low", "tau_2_high"),
            ("lr_per_tau_low", "lr_per_tau_high"),
            ("group_scale_low", "group_scale_high"),
        ):
            a, b = getattr(self, low), getattr(self, high)
            require(a < b, f"search.{low}={a}, search.{high}={b}: need {low} < {high}")
        require(
            {"independent", "shared"} <= set(self.baselines),
            f"search.baselines={self.baselines}: every sweep is compared with independent and shared; add both",
        )
        names = check_template(self.task_prompt, "search.task_prompt")
        require(
            set(names) == {"task"},
            f"search.task_prompt={self.task_prompt!r}: need {{task}} and no other name in braces, such as '{{task}}: '",
        )
        folds = self.unseen_folds
        require(
            folds is None or self.mode == "optuna",
            f"search.unseen_folds={folds}: fits from the start, and values of a path begin where others ended; drop "
            "it, or search.mode=path",
        )
        require(
            self.mode == "optuna" or not self.taus,
            f"search.taus={self.taus}: a path chooses its own values; drop them, or search.mode=path",
        )
        require(
            self.mode == "optuna" or self.pack == 1,
            f"search.pack={self.pack}: a path fits one value after another; drop it, or search.mode=path",
        )
        require(
            self.scheduler == "none" or (self.mode == "optuna" and self.pack == 1),
            f"search.scheduler={self.scheduler}: compares separate fits; drop it, or search.mode=path and search.pack",
        )
        require(
            self.mode == "optuna" or self.num_trials >= 1,
            f"search.num_trials={self.num_trials}: a path needs at least 1 value",
        )
        require(
            self.mode == "optuna" or not {"pfedme", "vi"} & set(self.baselines),
            f"search.baselines={self.baselines}: pfedme and vi take the best tau of separate fits; drop them, or "
            "search.mode=path",
        )


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Where the trials run, and with which resources."""

    address: str | None = None
    """Ray cluster to join: `auto` or an address. Left out: a private Ray on this machine, reachable from nowhere
    else."""
    workers_per_trial: Count = 1
    """Processes per fit, each with its own GPU if there are any. See `train.parallel`."""
    cpus_per_trial: Positive = 1
    """CPUs that each process of a trial reserves. torch uses as many threads."""
    gpus_per_trial: NotNegative | None = None
    """GPUs that each process of a trial reserves. With a fraction, several trials share a GPU: each may take that part
    of its memory. More than 1: a whole number. Left out: 1 if Ray has GPUs, else 0."""
    max_concurrent: Count | None = None
    """Most trials at once. Left out: as many as the resources allow."""
    max_failures: Number = 2
    """How often a trial that crashed is restarted from its last checkpoint."""
    trial_timeout: Annotated[float, Bounds(0, with_low=False, with_high=True)] | None = 1800.0
    """Seconds without a step after which a trial counts as crashed. null: never."""

    def __post_init__(self) -> None:
        check_bounds(self, "ray")
        require(
            self.workers_per_trial == 1 or self.gpus_per_trial is None or float(self.gpus_per_trial).is_integer(),
            f"ray.gpus_per_trial={self.gpus_per_trial}: the processes of ray.workers_per_trial="
            f"{self.workers_per_trial} each need a GPU of their own; set 1",
        )
        require(
            self.gpus_per_trial is None or self.gpus_per_trial < 1 or float(self.gpus_per_trial).is_integer(),
            f"ray.gpus_per_trial={self.gpus_per_trial}: Ray shares one GPU among trials, and gives several only whole; "
            "set a fraction below 1, or 1, 2, …",
        )
