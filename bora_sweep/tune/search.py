"""Which fits a sweep makes, and in which order: the baselines, the values that the user lists, then Optuna's; or, in
mode `path`, the baselines and a path for each rank. A baseline that is made from another's adapters waits for it.

The sequence is a function of the configuration and of the number of trials that run at once: Optuna's sampler is seeded
anew for each value from its number, and is told results in the order of their numbers. So a sweep that was cut off is
taken up by replaying it: values whose results are in the run's folder are told to a fresh study and not fitted again.
No state of the searcher is kept on disk.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from ray.tune.search import Searcher

from bora_sweep.config import Config
from bora_sweep.tune.points import Known, Point, fixed_points, trial_config, trial_id

SPREAD = 5  # of Optuna's first values, how many at least are spread evenly over log tau before its sampler chooses

SCALE = "scale."  # before a group's name in the search's space

SAME = 0.01  # nearer than this in log tau, two values are one: the sampler would measure noise that fits do not have

STARTUP = 3  # results without which a sampler draws at random: not all of the spread values are known when it is asked


class TauSearch(Searcher):
    """The sweep as a Ray Tune searcher; see the module's text.

    A trial of Tune's is a pack of `config.search.pack` fits, or of fewer where no more are ready that can go together.

    Args:
        config: What is searched; `search.pack` is a number.
        known: What an earlier start of the sweep left, by trial.
        slots: Trials of Tune's that run at once.
        groups: The groups of parameters whose share of tau is searched; the first is what the others are measured by.
    """

    def __init__(self, config: Config, known: dict[str, Known], specs: int = 1, groups: Sequence[str] = ()) -> None:
        super().__init__()
        self.space = search_space(config, groups[1:])
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.config, self.known, self.groups = config, known, groups
        self.study = optuna.create_study(direction="minimize")
        self.pack = int(config.search.pack)
        self.spread = min(max(SPREAD, self.pack), config.search.num_trials)
        # The values of a pack are chosen by the results of all values up to `lag` packs before it and of none after, in
        # whichever order they end: else a sweep could not be repeated. Wide enough a lag, and no slot waits long for an
        # earlier value. Optuna takes account of those that still run, lest it ask for them again.
        self.lag = max(1, 2 * specs - 2)
        self.is_stopping = False
        """Set from outside: no further fit is begun."""
        self._fixed = fixed_points(config)
        self._num_points = len(self._fixed) + (config.search.num_trials if config.search.mode == "optuna" else 0)
        self._points: list[Point] = []
        self._waiting: list[tuple[Point, int]] = []
        self._running: dict[str, list[tuple[Point, int]]] = {}
        self._objectives: dict[int, dict[int, float]] = {}
        """By point, then by seed."""
        self._asked: dict[int, optuna.Trial] = {}
        self._num_told = 0

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:  # noqa: ARG002
        """Accept whatever Tune passes on: the space is in the sweep's own configuration."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # its own FINISHED is a str
        """The next fits that have no result yet; None while they hang on one that runs; `FINISHED` after the last."""
        if self.is_stopping:
            return self.FINISHED
        pack: list[tuple[Point, int]] = []
        while len(pack) < self.pack:
            ready = self._take_ready(pack)
            if ready is None:
                if self._may_open(pack) and self._open_next_point():
                    continue
                break
            point, seed_index = ready
            known = self.known.get(self._id(point.number, seed_index))
            if known is not None and known.finished and point.method != "path":
                self._objectives[point.number][seed_index] = known.objective
                continue
            pack.append(ready)
        if pack:
            self._running[trial_id] = pack
            return {"fits": [self._fit(*ready) for ready in pack]}
        ended = len(self._points) == self._num_points and not self._waiting
        return self.FINISHED if ended else None

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Note the fits' objectives; one that failed, or is not a number, counts as a failure of its value."""
        found = {} if error or result is None else result
        for point, seed_index in self._running.pop(trial_id):
            key = f"objectives/{self._id(point.number, seed_index)}"  # Tune flattens what was reported
            self._objectives[point.number][seed_index] = found.get(key, math.nan)

    def _fit(self, point: Point, seed_index: int) -> dict[str, Any]:
        """What `tune_trial` is to fit."""
        start = None if point.after is None else self._id(point.after, seed_index)
        own = self._id(point.number, seed_index)
        return {"trial_id": own, "point": vars(point), "seed_index": seed_index, "start": start}

    def _may_open(self, pack: list[tuple[Point, int]]) -> bool:
        """A pack that cannot grow, or whose other seeds wait, opens no further value."""
        return not pack or self._can_be_packed(pack[0][0])

    def _can_be_packed(self, point: Point) -> bool:
        """Whether its fits may share their forward passes with those of other points, which have the sweep's rank."""
        return point.rank is None and point.method == "map" and trial_config(self.config, point, 0).can_be_packed

    def _id(self, number: int, seed_index: int) -> str:
        return trial_id(number, seed_index, self.config.search.seeds)

    def _take_ready(self, pack: list[tuple[Point, int]]) -> tuple[Point, int] | None:
        """The first fit that waits for nothing and can join the pack, taken off the list."""
        for index, (point, seed_index) in enumerate(self._waiting):
            if pack and (seed_index != pack[0][1] or not all(map(self._can_be_packed, (pack[0][0], point)))):
                continue
            if point.is_last and self._all_others_ended():
                point = replace(self._best(), number=point.number, method=point.method)
            elif point.is_last or (point.after is not None and seed_index not in self._objectives[point.after]):
                continue
            del self._waiting[index]
            return point, seed_index
        return None

    def _all_others_ended(self) -> bool:
        others = [point for point in self._points if not point.is_last]
        seeds = self.config.search.seeds
        return len(self._points) == self._num_points and all(len(self._objectives[p.number]) == seeds for p in others)

    def _best(self) -> Point:
        """Of the values between the ends, the best on validation; the configured one where all failed."""
        mean_of = {}
        for point in self._points:
            objectives = self._objectives[point.number].values()
            if point.method == "map" and 0 < point.tau < math.inf and all(map(math.isfinite, objectives)):
                mean_of[point.number] = sum(objectives) / len(objectives)
        best = min(mean_of, key=mean_of.__getitem__, default=None)
        return Point(-1, self.config.prior.tau) if best is None else self._points[best]

    def _open_next_point(self) -> bool:
        number = len(self._points)
        if number == self._num_points:
            return False
        if number < len(self._fixed):
            point = self._fixed[number]
        elif number - len(self._fixed) < self.spread or self._tell_up_to(self._known_to(number)):
            point = self._ask(number)
        else:
            return False
        self._points.append(point)
        self._objectives[number] = {}
        self._waiting.extend((point, seed_index) for seed_index in range(self.config.search.seeds))
        return True

    def _known_to(self, number: int) -> int:
        """The last value whose result counts in the choice of this one."""
        place = number - len(self._fixed)
        return max(-1, number - place % self.pack - 1 - (self.lag - 1) * self.pack)

    def _ask(self, number: int) -> Point:
        """The value that this number had before, or a new one of Optuna's."""
        search = self.config.search
        earlier = next((k.point for k in self.known.values() if k.point.number == number), None)
        index = number - len(self._fixed)
        if earlier is not None:
            self.study.enqueue_trial(self._params(earlier))
        elif index < self.spread:
            self.study.enqueue_trial({"tau": _spread(index, self.spread, search)})
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


def search_space(config: Config, groups: Sequence[str]) -> dict[str, FloatDistribution]:
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
