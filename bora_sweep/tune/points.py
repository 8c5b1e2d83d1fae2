"""The fits of a sweep: the baselines, the values that the user lists, the values that the search chooses."""

import json
import math
from dataclasses import dataclass
from typing import Any

from bora_sweep.config import LEARNT_START, MERGES, Config, with_values

LEARNT = "learnt"
"""`Point.method` of a fit that finds tau itself: a MAP fit with `prior.tau=learn`."""
ENDED = ("finished", "failed")
"""Statuses in `trials` of fits that are over."""


@dataclass(frozen=True)
class Point:
    """One choice of what is searched, fitted once for each seed."""

    number: int
    tau: float
    lr_per_tau: float | None = None
    method: str = "map"
    """The trial's method, or `path`, or `LEARNT`."""
    rank: int | None = None
    """None: the sweep's own rank."""
    start_from: int | None = None
    """Number of the point whose adapters the fit starts from."""
    learning_rate: float | None = None
    """None: the sweep's own."""
    group_scales: dict[str, float] | None = None
    """`prior.group_scales`, where they are searched."""
    tau_2: float | None = None
    """Of groups of tasks, where there are any; None: as configured, and inf where it is searched."""

    @property
    def needs_best_tau(self) -> bool:
        """Whether it takes the best tau of all other points, and so waits for them."""
        return self.method in ("pfedme", "vi")


def trial_id(number: int, seed_index: int, num_seeds: int) -> str:
    """`007`, or `007-1` for its second seed.

    Args:
        number: Of the point.
        seed_index: Which of the point's seeds, from 0.
        num_seeds: `search.seeds` when the sweep began. Of several the first is `007-0`.
    """
    return f"{number:03d}" if num_seeds == 1 and seed_index == 0 else f"{number:03d}-{seed_index}"


@dataclass(frozen=True)
class EarlierTrial:
    """What an earlier start of the sweep wrote of a trial."""

    point: Point
    finished: bool
    objective: float
    """What the search minimises (`bora_sweep.runs.results.objective`), where finished."""


def point_of(row: dict[str, Any]) -> Point | None:
    """The point that a row of the `trials` table was fitted at; None for a value within a path."""
    if "." in row["trial_id"]:
        return None
    config = json.loads(row["config_json"])
    number = int(row["trial_id"].partition("-")[0])
    prior, train = config["prior"], config["train"]
    return Point(
        number, prior["tau"], train["lr_per_tau"], row["method"], learning_rate=train["learning_rate"],
        group_scales=prior["group_scales"], tau_2=prior.get("tau_2"),
    )  # fmt: skip


def trial_config(config: Config, point: Point, seed_index: int) -> Config:
    """The configuration of one fit of the sweep.

    Args:
        config: The sweep's.
        point: What the search has chosen.
        seed_index: Added to `train.seed`.
    """
    prior: dict[str, Any] = {"tau": "learn" if point.method == LEARNT else point.tau}
    train: dict[str, Any] = {"seed": config.train.seed + seed_index}
    if point.lr_per_tau is not None:
        train["lr_per_tau"] = point.lr_per_tau
    if point.learning_rate is not None:
        train["learning_rate"] = point.learning_rate
    if point.group_scales is not None:
        prior["group_scales"] = point.group_scales
    if config.data.has_groups:
        prior["tau_2"] = _tau_2(config, point)
    lora: dict[str, Any] = {} if point.rank is None else {"rank": point.rank}
    if point.method == "shared_wide":
        lora = wide_lora(config)
    method = "map" if point.method in ("path", LEARNT) else point.method
    return with_values(config, prior=prior, train=train, lora=lora, method=method)


def _tau_2(config: Config, point: Point) -> float | None:
    """That of a fit of the sweep; None: it is learnt.

    What knows of no groups has none, and neither has `search.taus` beside a search.
    """
    if point.tau_2 is not None:
        return point.tau_2
    if point.method == LEARNT:
        return config.prior.tau_2
    is_end = point.method != "map" or point.tau in (0, math.inf)
    return math.inf if is_end or config.prior.tau_2 is None else config.prior.tau_2


def wide_lora(config: Config) -> dict[str, Any]:
    """Rank and alpha of `shared_wide`: alpha grows with the rank, so that `LoraConfig.scale` is the same."""
    lora, rank = config.lora, config.search.wide_rank or config.lora.rank
    return {"rank": rank, "alpha": lora.scale * (math.sqrt(rank) if lora.variant == "rslora" else rank)}


def preset_points(config: Config) -> list[Point]:
    """The baselines, the shared models of other ranks, then the user's own values that are not among them.

    Other learning rates follow, each with models of its own for tau = 0 and tau = inf. In mode `path` a path starts at
    each shared model.
    """
    search = config.search
    names = ["independent", "shared", *(name for name in search.baselines if name not in ("independent", "shared"))]
    if "zero_shot" in names:  # first, because it has a result at once
        names = ["zero_shot", *(name for name in names if name != "zero_shot")]
    numbers = {name: number for number, name in enumerate(names)}
    shared_method = "path" if search.mode == "path" else "map"
    points = [_baseline(name, numbers, shared_method) for name in names]
    other_ranks = [rank for rank in dict.fromkeys(search.ranks) if rank != config.lora.rank]
    points += [Point(len(points) + i, math.inf, method=shared_method, rank=rank) for i, rank in enumerate(other_ranks)]
    taus = [tau for tau in dict.fromkeys(search.taus) if 0 < tau < math.inf]
    points += [Point(len(points) + i, tau) for i, tau in enumerate(taus)]
    rates = [rate for rate in dict.fromkeys(search.learning_rates) if rate != config.train.learning_rate]
    ends = [(tau, method, rate) for rate in rates for tau, method in ((0.0, "map"), (math.inf, shared_method))]
    return points + [
        Point(len(points) + i, tau, method=method, learning_rate=rate) for i, (tau, method, rate) in enumerate(ends)
    ]


def _baseline(name: str, numbers: dict[str, int], shared_method: str) -> Point:
    number = numbers[name]
    match name:
        case "independent":
            return Point(number, 0.0)
        case "shared":
            return Point(number, math.inf, method=shared_method)
        case "per_group":
            return Point(number, math.inf, tau_2=0.0)
        case "learnt":
            return Point(number, LEARNT_START, method=LEARNT)
        case "fine_tuned":
            return Point(number, 0.0, method=name, start_from=numbers["shared"])
        case "fedsa":  # without a prior
            return Point(number, 0.0, method=name)
        case _ if name in MERGES:
            return Point(number, math.inf, method=name, start_from=numbers["independent"])
        case _:  # shared_wide and task_prompt; zero_shot has no tau; that of pfedme and vi the search finds
            return Point(number, math.inf, method=name)
