"""Which fits a sweep makes, and in which order: the baselines, the values that the user lists, then Optuna's.

The sequence is a function of the configuration and of the number of trials that run at once: Optuna's sampler is seeded
anew for each value from its number, and is told results in the order of their numbers. So a sweep that was cut off is
taken up by replaying it: values whose results are in the run's folder are told to a fresh study and not fitted again.
No state of the searcher is kept on disk.
"""

import json
import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from ray.tune.search import Searcher

from bora_sweep.config import Config, with_values

SPREAD = 5  # of Optuna's first values, how many are spread evenly over log tau before its sampler chooses

STARTUP = 3  # results without which a sampler draws at random: not all of the spread values are known when it is asked

BASELINES: dict[str, dict[str, Any]] = {
    "zero_shot": {"method": "zero_shot", "tau": math.inf},
    "independent": {"tau": 0.0},
    "shared": {"tau": math.inf},
}


@dataclass(frozen=True)
class Point:
    """One choice of what is searched, fitted once for each seed."""

    number: int
    tau: float
    lr_per_tau: float | None = None
    method: str = "map"

    def trial_id(self, seed_index: int, num_seeds: int) -> str:
        """`007`, or `007-1` for its second seed of several."""
        return f"{self.number:03d}" if num_seeds == 1 else f"{self.number:03d}-{seed_index}"


@dataclass(frozen=True)
class Known:
    """What an earlier start of the sweep left of a trial."""

    point: Point
    finished: bool
    objective: float
    """Validation nats per token, where finished."""


def point_of(row: dict[str, Any]) -> Point:
    """The point that a row of the `trials` table was fitted at."""
    config = json.loads(row["config_json"])
    number = int(row["trial_id"].partition("-")[0])
    return Point(number, config["prior"]["tau"], config["train"]["lr_per_tau"], row["method"])


def trial_config(config: Config, point: Point, seed_index: int) -> Config:
    """The configuration of one fit of the sweep."""
    prior: dict[str, Any] = {"tau": point.tau}
    train: dict[str, Any] = {"seed": config.train.seed + seed_index}
    if point.lr_per_tau is not None:
        train["lr_per_tau"] = point.lr_per_tau
    return with_values(config, prior=prior, train=train, method=point.method)


def fixed_points(config: Config) -> list[Point]:
    """The baselines, then the user's own values that are not among them."""
    baselines = [BASELINES[name] for name in config.search.baselines]
    listed: list[dict[str, Any]] = [{"tau": tau} for tau in dict.fromkeys(config.search.taus) if 0 < tau < math.inf]
    return [Point(number, **values) for number, values in enumerate([*baselines, *listed])]


def num_trials(config: Config) -> int:
    """Fits of the whole sweep."""
    return (len(fixed_points(config)) + config.search.num_trials) * config.search.seeds


class TauSearch(Searcher):
    """The sweep as a Ray Tune searcher; see the module's text.

    Args:
        config: What is searched.
        known: What an earlier start of the sweep left, by trial.
        slots: Trials that run at once.
    """

    def __init__(self, config: Config, known: dict[str, Known], slots: int = 1) -> None:
        super().__init__()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.config, self.known = config, known
        self.study = optuna.create_study(direction="minimize")
        # A value is chosen by the results of all values up to `lag` before it and of none after, in whichever order
        # they end: else a sweep could not be repeated. Wide enough a lag, and no slot waits long for an earlier value.
        self.lag = max(1, 2 * slots - 2)
        self._fixed = fixed_points(config)
        self._num_points = len(self._fixed) + config.search.num_trials
        self._points: list[Point] = []
        self._waiting: deque[tuple[Point, int]] = deque()
        self._running: dict[str, Point] = {}
        self._objectives: dict[int, list[float]] = {}
        self._asked: dict[int, optuna.Trial] = {}
        self._num_told = 0

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:  # noqa: ARG002
        """Accept whatever Tune passes on: the space is in the sweep's own configuration."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # its own FINISHED is a str
        """The next fit that has no result yet; None while it hangs on one that runs; `FINISHED` after the last."""
        while True:
            if not self._waiting:
                if len(self._points) == self._num_points:
                    return self.FINISHED
                if not self._open_next_point():
                    return None
            point, seed_index = self._waiting.popleft()
            our_id = point.trial_id(seed_index, self.config.search.seeds)
            known = self.known.get(our_id)
            if known is None or not known.finished:
                self._running[trial_id] = point
                return {"trial_id": our_id, "point": vars(point), "seed_index": seed_index}
            self._objectives[point.number].append(known.objective)

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Note a fit's objective; one that failed, or is not a number, counts as a failure of its value."""
        objective = math.nan if error or result is None else result.get("objective", math.nan)
        self._objectives[self._running.pop(trial_id).number].append(objective)

    def _open_next_point(self) -> bool:
        number = len(self._points)
        if number < len(self._fixed):
            point = self._fixed[number]
        elif number - len(self._fixed) < SPREAD or self._tell_up_to(number - self.lag):
            point = self._ask(number)
        else:
            return False
        self._points.append(point)
        self._objectives[number] = []
        self._waiting.extend((point, seed_index) for seed_index in range(self.config.search.seeds))
        return True

    def _ask(self, number: int) -> Point:
        """The value that this number had before, or a new one of Optuna's."""
        space, search = _space(self.config), self.config.search
        earlier = next((k.point for k in self.known.values() if k.point.number == number), None)
        index = number - len(self._fixed)
        if earlier is not None:
            self.study.enqueue_trial({name: getattr(earlier, name) for name in space})
        elif index < min(SPREAD, search.num_trials):
            self.study.enqueue_trial({"tau": _spread(index, min(SPREAD, search.num_trials), search)})
        self.study.sampler = _sampler(search.sampler, seed=self.config.train.seed + number)
        asked = self.study.ask(dict(space))
        self._asked[number] = asked
        return Point(number, tau=asked.params["tau"], lr_per_tau=asked.params.get("lr_per_tau"))

    def _tell_up_to(self, number: int) -> bool:
        """Tell Optuna the values up to `number`, in their order; False while one of them still runs."""
        for point in self._points[self._num_told : number + 1]:
            objectives = self._objectives[point.number]
            if len(objectives) < self.config.search.seeds:
                return False
            self._tell(point, sum(objectives) / len(objectives))
            self._num_told += 1
        return True

    def _tell(self, point: Point, mean: float) -> None:
        failed = not math.isfinite(mean)
        if point.number in self._asked:
            state = TrialState.FAIL if failed else TrialState.COMPLETE
            self.study.tell(self._asked.pop(point.number), None if failed else mean, state)
        elif not failed and point.method == "map":
            self._tell_fixed(point, mean)

    def _tell_fixed(self, point: Point, mean: float) -> None:
        """Let the sampler learn from the user's own values that lie within its bounds."""
        space = _space(self.config)
        given = {"tau": point.tau, "lr_per_tau": self.config.train.lr_per_tau}
        params = {name: given[name] for name in space}
        if all(space[name].low <= value <= space[name].high for name, value in params.items()):
            self.study.add_trial(optuna.trial.create_trial(params=params, distributions=dict(space), value=mean))


def _space(config: Config) -> dict[str, FloatDistribution]:
    """log tau; and log lr_per_tau where the learning rate is coupled to tau."""
    search = config.search
    space = {"tau": FloatDistribution(search.tau_low, search.tau_high, log=True)}
    if config.train.lr_per_tau is not None:
        space["lr_per_tau"] = FloatDistribution(search.lr_per_tau_low, search.lr_per_tau_high, log=True)
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
