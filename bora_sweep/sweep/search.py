"""Which fits a sweep makes, and in which order: the baselines, the values that the user lists, then Optuna's; or, in
mode `path`, the baselines and a path for each rank. A baseline that is made from another's adapters waits for it.

The sequence is a function of the configuration and of the number of trials that run at once: Optuna's sampler is seeded
anew for each value from its number, and is told results in the order of their numbers. So a sweep that was cut off is
taken up by replaying it: values whose results are in the run's folder are told to a fresh study and not fitted again.
No state of the searcher is kept on disk.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from ray.tune.search import Searcher

from bora_sweep.config import Config, with_values

SPREAD = 5  # of Optuna's first values, how many are spread evenly over log tau before its sampler chooses

SCALE = "scale."  # before a group's name in the search's space

SAME = 0.01  # nearer than this in log tau, two values are one: the sampler would measure noise that fits do not have

STARTUP = 3  # results without which a sampler draws at random: not all of the spread values are known when it is asked


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

    def trial_id(self, seed_index: int, num_seeds: int) -> str:
        """`007`, or `007-1` for its second seed of several."""
        return trial_id(self.number, seed_index, num_seeds)

    @property
    def is_last(self) -> bool:
        """Whether it needs the best tau, and so waits for all others."""
        return self.method in ("pfedme", "vi")


def trial_id(number: int, seed_index: int, num_seeds: int) -> str:
    """See `Point.trial_id`."""
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


class TauSearch(Searcher):
    """The sweep as a Ray Tune searcher; see the module's text.

    Args:
        config: What is searched.
        known: What an earlier start of the sweep left, by trial.
        slots: Trials that run at once.
        groups: The groups of parameters whose share of tau is searched; the first is what the others are measured by.
    """

    def __init__(self, config: Config, known: dict[str, Known], slots: int = 1, groups: Sequence[str] = ()) -> None:
        super().__init__()
        self.space = _space(config, groups[1:])
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.config, self.known, self.groups = config, known, groups
        self.study = optuna.create_study(direction="minimize")
        # A value is chosen by the results of all values up to `lag` before it and of none after, in whichever order
        # they end: else a sweep could not be repeated. Wide enough a lag, and no slot waits long for an earlier value.
        self.lag = max(1, 2 * slots - 2)
        self._fixed = fixed_points(config)
        self._num_points = len(self._fixed) + (config.search.num_trials if config.search.mode == "optuna" else 0)
        self._points: list[Point] = []
        self._waiting: list[tuple[Point, int]] = []
        self._running: dict[str, tuple[Point, int]] = {}
        self._objectives: dict[int, dict[int, float]] = {}
        """By point, then by seed."""
        self._asked: dict[int, optuna.Trial] = {}
        self._num_told = 0

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:  # noqa: ARG002
        """Accept whatever Tune passes on: the space is in the sweep's own configuration."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # its own FINISHED is a str
        """The next fit that has no result yet; None while it hangs on one that runs; `FINISHED` after the last."""
        while True:
            ready = self._take_ready()
            if ready is None:
                if self._open_next_point():
                    continue
                ended = len(self._points) == self._num_points and not self._waiting
                return self.FINISHED if ended else None
            point, seed_index = ready
            our_id = self._id(point.number, seed_index)
            known = self.known.get(our_id)
            if known is not None and known.finished and point.method != "path":
                self._objectives[point.number][seed_index] = known.objective
                continue
            self._running[trial_id] = point, seed_index
            start = None if point.after is None else self._id(point.after, seed_index)
            return {"trial_id": our_id, "point": vars(point), "seed_index": seed_index, "start": start}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Note a fit's objective; one that failed, or is not a number, counts as a failure of its value."""
        objective = math.nan if error or result is None else result.get("objective", math.nan)
        point, seed_index = self._running.pop(trial_id)
        self._objectives[point.number][seed_index] = objective

    def _id(self, number: int, seed_index: int) -> str:
        return trial_id(number, seed_index, self.config.search.seeds)

    def _take_ready(self) -> tuple[Point, int] | None:
        """The first fit that waits for nothing, taken off the list."""
        for index, (point, seed_index) in enumerate(self._waiting):
            if point.is_last and self._all_others_ended():
                point = replace(point, tau=self._best_tau())
            elif point.is_last or (point.after is not None and seed_index not in self._objectives[point.after]):
                continue
            del self._waiting[index]
            return point, seed_index
        return None

    def _all_others_ended(self) -> bool:
        others = [point for point in self._points if not point.is_last]
        seeds = self.config.search.seeds
        return len(self._points) == self._num_points and all(len(self._objectives[p.number]) == seeds for p in others)

    def _best_tau(self) -> float:
        """Of the values between the ends, the best on validation; `prior.tau` where all failed."""
        mean_of = {}
        for point in self._points:
            objectives = self._objectives[point.number].values()
            if point.method == "map" and 0 < point.tau < math.inf and all(map(math.isfinite, objectives)):
                mean_of[point.tau] = sum(objectives) / len(objectives)
        return min(mean_of, key=mean_of.__getitem__, default=self.config.prior.tau)

    def _open_next_point(self) -> bool:
        number = len(self._points)
        if number == self._num_points:
            return False
        if number < len(self._fixed):
            point = self._fixed[number]
        elif number - len(self._fixed) < SPREAD or self._tell_up_to(number - self.lag):
            point = self._ask(number)
        else:
            return False
        self._points.append(point)
        self._objectives[number] = {}
        self._waiting.extend((point, seed_index) for seed_index in range(self.config.search.seeds))
        return True

    def _ask(self, number: int) -> Point:
        """The value that this number had before, or a new one of Optuna's."""
        search = self.config.search
        earlier = next((k.point for k in self.known.values() if k.point.number == number), None)
        index = number - len(self._fixed)
        if earlier is not None:
            self.study.enqueue_trial(self._params(earlier))
        elif index < min(SPREAD, search.num_trials):
            self.study.enqueue_trial({"tau": _spread(index, min(SPREAD, search.num_trials), search)})
        self.study.sampler = _sampler(search.sampler, seed=self.config.train.seed + number)
        asked = self.study.ask(dict(self.space))
        if earlier is None and (other := self._instead_of(asked.params)) is not None:
            self.study.tell(asked, state=TrialState.FAIL)
            self.study.enqueue_trial({"tau": other})
            asked = self.study.ask(dict(self.space))
        self._asked[number] = asked
        scales = {name.removeprefix(SCALE): value for name, value in asked.params.items() if name.startswith(SCALE)}
        if scales:
            scales = {self.groups[0]: 1.0, **scales}
        return Point(number, asked.params["tau"], asked.params.get("lr_per_tau"), group_scales=scales or None)

    def _instead_of(self, params: dict[str, float]) -> float | None:
        """A tau halfway to the nearest value, where the sampler asks again for one that was fitted; else None."""
        log_tau, known = math.log(params["tau"]), [math.log(p.tau) for p in self._points if self._informs(p)]
        others = [other for other in known if abs(other - log_tau) > SAME]
        if len(params) > 1 or not others or len(others) == len(known):
            return None
        return math.exp((log_tau + min(others, key=lambda other: abs(other - log_tau))) / 2)

    def _tell_up_to(self, number: int) -> bool:
        """Tell Optuna the values up to `number`, in their order; False while one of them still runs."""
        for point in self._points[self._num_told : number + 1]:
            objectives = self._objectives[point.number]
            if self._informs(point):
                if len(objectives) < self.config.search.seeds:
                    return False
                self._tell(point, sum(objectives.values()) / len(objectives))
            self._num_told += 1
        return True

    def _informs(self, point: Point) -> bool:
        """Whether Optuna learns from it: its own values, and the user's own that lie within its bounds."""
        if point.number in self._asked:
            return True
        within = all(
            self.space[name].low <= value <= self.space[name].high for name, value in self._params(point).items()
        )
        return point.method == "map" and point.rank is None and within

    def _params(self, point: Point) -> dict[str, float]:
        """Its place in the search's space."""
        scales = self.config.prior.group_scales if point.group_scales is None else point.group_scales
        lr_per_tau = self.config.train.lr_per_tau if point.lr_per_tau is None else point.lr_per_tau
        given = {"tau": point.tau, "lr_per_tau": lr_per_tau}
        return {
            name: given[name] if name in given else scales.get(name.removeprefix(SCALE), 1.0) for name in self.space
        }

    def _tell(self, point: Point, mean: float) -> None:
        failed = not math.isfinite(mean)
        if point.number in self._asked:
            state = TrialState.FAIL if failed else TrialState.COMPLETE
            self.study.tell(self._asked.pop(point.number), None if failed else mean, state)
        elif not failed:
            known = {"params": self._params(point), "distributions": dict(self.space)}
            self.study.add_trial(optuna.trial.create_trial(value=mean, **known))


def _space(config: Config, groups: Sequence[str]) -> dict[str, FloatDistribution]:
    """log tau; log lr_per_tau where the learning rate is coupled to tau; the log of each group's share of tau."""
    search = config.search
    space = {"tau": FloatDistribution(search.tau_low, search.tau_high, log=True)}
    if config.train.lr_per_tau is not None:
        space["lr_per_tau"] = FloatDistribution(search.lr_per_tau_low, search.lr_per_tau_high, log=True)
    for name in groups:
        space[SCALE + name] = FloatDistribution(search.group_scale_low, search.group_scale_high, log=True)
    return space


def _spread(index: int, count: int, search: Any) -> float:
    """The middle of the index-th of `count` equal parts of log tau."""
    low, high = math.log(search.tau_low), math.log(search.tau_high)
    return math.exp(low + (high - low) * (index + 0.5) / count)


def _sampler(name: str, seed: int) -> BaseSampler:
    match name:
        case "tpe":
            return TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True)
        case "gp":
            return GPSampler(seed=seed, n_startup_trials=STARTUP)
        case _:
            return RandomSampler(seed=seed)
