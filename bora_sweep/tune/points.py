"""The fits of a sweep: the baselines, the values that the user lists, those that the search chooses."""

import json
import math
from dataclasses import dataclass
from typing import Any

from bora_sweep.config import Config, with_values


@dataclass(frozen=True)
class Point:
    """One choice of what is searched, fitted once for each seed."""

    number: int
    tau: float
    lr_per_tau: float | None = None
    method: str = "map"
    """That of the trial, or `path`."""
    rank: int | None = None
    """Where it is not the sweep's own."""
    after: int | None = None
    """The point whose adapters it begins with."""
    group_scales: dict[str, float] | None = None
    """`prior.group_scales`, where they are searched."""

    @property
    def is_last(self) -> bool:
        """Whether it needs the best tau, and so waits for all others."""
        return self.method in ("pfedme", "vi")


def trial_id(number: int, seed_index: int, num_seeds: int) -> str:
    """`007`, or `007-1` for its second seed of several."""
    return f"{number:03d}" if num_seeds == 1 else f"{number:03d}-{seed_index}"


@dataclass(frozen=True)
class Known:
    """What an earlier start of the sweep left of a trial."""

    point: Point
    finished: bool
    objective: float
    """Validation nats per token, where finished."""


def point_of(row: dict[str, Any]) -> Point | None:
    """The point that a row of the `trials` table was fitted at; None for a value within a path."""
    if "." in row["trial_id"]:
        return None
    config = json.loads(row["config_json"])
    number = int(row["trial_id"].partition("-")[0])
    prior, lr_per_tau = config["prior"], config["train"]["lr_per_tau"]
    return Point(number, prior["tau"], lr_per_tau, row["method"], group_scales=prior["group_scales"])


def trial_config(config: Config, point: Point, seed_index: int) -> Config:
    """The configuration of one fit of the sweep."""
    prior: dict[str, Any] = {"tau": point.tau}
    train: dict[str, Any] = {"seed": config.train.seed + seed_index}
    if point.lr_per_tau is not None:
        train["lr_per_tau"] = point.lr_per_tau
    if point.group_scales is not None:
        prior["group_scales"] = point.group_scales
    lora = {} if point.rank is None else {"rank": point.rank}
    method = "map" if point.method == "path" else point.method
    return with_values(config, prior=prior, train=train, lora=lora, method=method)


def fixed_points(config: Config) -> list[Point]:
    """The baselines, the shared models of other ranks, then the user's own values that are not among them.

    In mode `path` a shared model is the head of a path.
    """
    search = config.search
    ordered = ["independent", "shared", *(name for name in search.baselines if name not in ("independent", "shared"))]
    if "zero_shot" in ordered:  # first: it is there at once
        ordered = ["zero_shot", *(name for name in ordered if name != "zero_shot")]
    place = {name: number for number, name in enumerate(ordered)}
    head = "path" if search.mode == "path" else "map"
    points = [_baseline(name, place, head) for name in ordered]
    others = [rank for rank in dict.fromkeys(search.ranks) if rank != config.lora.rank]
    points += [Point(len(points) + i, math.inf, method=head, rank=rank) for i, rank in enumerate(others)]
    listed = [tau for tau in dict.fromkeys(search.taus) if 0 < tau < math.inf]
    return points + [Point(len(points) + i, tau) for i, tau in enumerate(listed)]


def _baseline(name: str, place: dict[str, int], head: str) -> Point:
    number = place[name]
    match name:
        case "independent":
            return Point(number, 0.0)
        case "shared":
            return Point(number, math.inf, method=head)
        case "fine_tuned":
            return Point(number, 0.0, method=name, after=place["shared"])
        case "average" | "ties" | "dare":
            return Point(number, math.inf, method=name, after=place["independent"])
        case _:  # zero_shot; and pfedme and vi, whose tau is known when the search has ended
            return Point(number, math.inf, method=name)


def num_trials(config: Config) -> int:
    """Fits of the whole sweep."""
    fixed, search = fixed_points(config), config.search
    chosen = search.num_trials * (sum(p.method == "path" for p in fixed) if search.mode == "path" else 1)
    return (len(fixed) + chosen) * search.seeds
