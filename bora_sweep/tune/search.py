"""Which fits a sweep makes, and in which order: the baselines, the values that the user lists, then Optuna's.

In mode `path` a path for each rank follows the baselines instead. A baseline that is made from another's adapters waits
for it.

The sequence is a function of the configuration, of the numbers of the points that were given (`tune.numbering`), and of
the number of trials that run at once. Optuna's sampler is seeded anew for each value by the value's number, and is told
results in the order of their numbers. A sweep that was interrupted, or is extended, is therefore resumed by a replay:
values with results in the run's folder are told to a new study and not fitted again. The searcher keeps no state on
disk.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import optuna
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from ray.tune.search import Searcher

from bora_sweep.config import Config
from bora_sweep.tune.numbering import Numbering, new_numbering
from bora_sweep.tune.points import EarlierTrial, Point, trial_config
from bora_sweep.tune.search_space import (
    SCALE,
    is_within,
    params_in,
    search_space,
    searched_rates,
    spread_tau,
    spread_tau_2,
    widest_gap_tau,
)

NUM_SPREAD = 5
"""At least so many of Optuna's first values are spread evenly over log tau; then its sampler chooses."""

SAME = 0.01
"""Two values closer than this in log tau count as one: the sampler would fit noise that the fits do not have."""

NUM_STARTUP = 3
"""A sampler with fewer results draws at random. Not all spread values have results when it is first asked."""


class TauSearch(Searcher):
    """The sweep as a Ray Tune searcher; see the module's text.

    A trial of Tune's is a pack of `config.search.pack` fits, or of fewer where no more are ready that can be packed.

    Args:
        config: What is searched; `search.pack` is a number.
        earlier: Trials of an earlier start of the sweep, by trial id.
        num_concurrent: Trials of Tune's that run at once.
        groups: The groups of parameters whose share of tau is searched, relative to the first group.
        numbering: Of the sweep's points; None: as of a sweep that begins.
        before_suggest: Called before each suggestion; may call `insert`.
        note: Gets a line on what a user should know.
    """

    def __init__(
        self,
        config: Config,
        earlier: dict[str, EarlierTrial],
        num_concurrent: int = 1,
        groups: Sequence[str] = (),
        *,
        numbering: Numbering | None = None,
        before_suggest: Callable[["TauSearch"], None] = lambda _: None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__()
        self.space = search_space(config, groups[1:])
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.config, self.earlier, self.groups = config, dict(earlier), groups
        self.study = optuna.create_study(direction="minimize")
        self.pack = int(config.search.pack)
        self.numbering = new_numbering(config) if numbering is None else numbering
        self.num_spread = max(NUM_SPREAD, self.pack)
        # A pack's values are chosen by the results of all values up to `lag` packs before it and of none after them, in
        # whichever order these end; otherwise a sweep could not be repeated. The lag is wide enough that no worker
        # waits long for an earlier value. Optuna knows which values still run, and does not ask for them again.
        self.lag = max(1, 2 * num_concurrent - 2)
        self.is_stopping = False
        """Set from outside: no further fit is started."""
        self._before_suggest, self._note = before_suggest, note
        self._points: dict[int, Point] = {}
        """Those that were opened, by number."""
        self._waiting: list[tuple[Point, int]] = []
        self._running: dict[str, list[tuple[Point, int]]] = {}
        self._objectives: dict[int, dict[int, float]] = {}
        """By point, then by seed."""
        self._at_best: dict[tuple[int, int], Point] = {}
        """By point and seed: the best tau that a fit got which needs it."""
        self._asked: dict[int, optuna.Trial] = {}
        self._num_told = 0

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its searcher for a restore that is never made."""
        return {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:  # noqa: ARG002
        """Accept whatever Tune passes on: the space is in the sweep's own configuration."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # its own FINISHED is a str
        """The next fits that have no result yet; None while others run; `FINISHED` after the last."""
        self._before_suggest(self)
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
            if point.needs_best_tau:
                self._at_best[point.number, seed_index] = point
            earlier = self.earlier.get(self._id(point.number, seed_index))
            if earlier is not None and earlier.finished and point.method != "path":
                if not point.needs_best_tau or self._is_same_fit(point, earlier.point):
                    self._objectives[point.number][seed_index] = earlier.objective
                    continue
                self._note_fitted_anew(point, seed_index, earlier.point)
            pack.append(ready)
        if pack:
            self._running[trial_id] = pack
            return {"fits": [self._fit(*ready) for ready in pack]}
        if not self._are_all_open or self._waiting or self._running:
            return None
        return self.suggest(trial_id) if self._open_again() else self.FINISHED

    def insert(self, tau: float) -> bool:
        """Make `tau` the value that is fitted next, with the next number that is free.

        Returns:
            False where the sweep has this value already.
        """
        numbers = [*self._points, *(trial.point.number for trial in self.earlier.values())]
        taken = 1 + max(numbers, default=-1)
        numbering = self.numbering.with_points([Point(-1, tau)], taken)
        if numbering == self.numbering or tau in self._taus():
            return False
        self.numbering = numbering
        self._open(numbering.given[max(numbering.given)], at=0)
        return True

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Note the fits' objectives; one that failed, or is not a number, counts as a failure of its value."""
        reported = {} if error or result is None else result
        for point, seed_index in self._running.pop(trial_id):
            key = f"objectives/{self._id(point.number, seed_index)}"  # Tune flattens what was reported
            self._objectives[point.number][seed_index] = reported.get(key, math.nan)

    def _taus(self) -> set[float]:
        """Of MAP fits that were opened, or that an earlier start of the sweep made."""
        points = [*self._points.values(), *(trial.point for trial in self.earlier.values())]
        return {point.tau for point in points if point.method == "map"}

    @property
    def _are_all_open(self) -> bool:
        return len(self._points) == self.numbering.num_points(self.config)

    def _is_same_fit(self, point: Point, earlier: Point) -> bool:
        """Whether both are fitted at the same tau, rates and shares of groups."""
        return trial_config(self.config, point, 0) == trial_config(self.config, earlier, 0)

    def _open_again(self) -> bool:
        """Let fits wait again that got the best tau before a value that was inserted became the best."""
        best, opened = self._best(), False
        for (number, seed_index), at in list(self._at_best.items()):
            now = replace(best, number=number, method=at.method)
            if self._is_same_fit(now, at):
                continue
            self._note_fitted_anew(now, seed_index, at)
            self.earlier.pop(self._id(number, seed_index), None)
            del self._at_best[number, seed_index], self._objectives[number][seed_index]
            self._waiting.append((self._points[number], seed_index))
            opened = True
        return opened

    def _note_fitted_anew(self, point: Point, seed_index: int, earlier: Point) -> None:
        self._note(
            f"trial {self._id(point.number, seed_index)} ({point.method}) was fitted at tau = {earlier.tau:g}, the "
            f"best before; it is fitted anew at tau = {point.tau:g}, the best now"
        )

    def _fit(self, point: Point, seed_index: int) -> dict[str, Any]:
        """What the trainable is to fit."""
        start = None if point.start_from is None else self._id(point.start_from, seed_index)
        fit_id = self._id(point.number, seed_index)
        return {"trial_id": fit_id, "point": vars(point), "seed_index": seed_index, "start": start}

    def _may_open(self, pack: list[tuple[Point, int]]) -> bool:
        """A pack that cannot grow, or whose other seeds wait, opens no further value."""
        return not pack or self._can_be_packed(pack[0][0])

    def _can_be_packed(self, point: Point) -> bool:
        """Whether its fits may share forward passes with those of other points, which have the sweep's rank."""
        return point.rank is None and point.method == "map" and trial_config(self.config, point, 0).can_be_packed

    def _id(self, number: int, seed_index: int) -> str:
        return self.numbering.trial_id(number, seed_index)

    def _take_ready(self, pack: list[tuple[Point, int]]) -> tuple[Point, int] | None:
        """The first fit that waits for nothing and can join the pack, taken off the list."""
        for index, (point, seed_index) in enumerate(self._waiting):
            if pack and (seed_index != pack[0][1] or not all(map(self._can_be_packed, (pack[0][0], point)))):
                continue
            if point.needs_best_tau:
                if not self._all_others_ended():
                    continue
                point = replace(self._best(), number=point.number, method=point.method)
            elif point.start_from is not None and seed_index not in self._objectives[point.start_from]:
                continue
            del self._waiting[index]
            return point, seed_index
        return None

    def _all_others_ended(self) -> bool:
        others = [point for point in self._points.values() if not point.needs_best_tau]
        seeds = self.config.search.seeds
        return self._are_all_open and all(len(self._objectives[point.number]) == seeds for point in others)

    def _best(self) -> Point:
        """The best finite tau above 0 on validation; the configured one where all failed."""
        mean_of = {}
        for _, point in sorted(self._points.items()):
            objectives = self._objectives[point.number].values()
            if point.method == "map" and 0 < point.tau < math.inf and all(map(math.isfinite, objectives)):
                mean_of[point.number] = sum(objectives) / len(objectives)
        best = min(mean_of, key=mean_of.__getitem__, default=None)
        return Point(-1, self.config.tau) if best is None else self._points[best]

    def _open_next_point(self) -> bool:
        if self._are_all_open:
            return False
        number = next(number for number in count() if number not in self._points)
        point = self.numbering.given.get(number)
        if point is None:
            is_spread = self.numbering.index_of(number) < self.num_spread
            if not is_spread and not self._tell_up_to(self._last_known(number)):
                return False
            point = self._ask(number)
        self._open(point, at=len(self._waiting))
        return True

    def _open(self, point: Point, at: int) -> None:
        """Let the fits of a point wait, from this place on in the order of those that wait."""
        self._points[point.number] = point
        self._objectives[point.number] = {}
        self._waiting[at:at] = [(point, seed_index) for seed_index in range(self.config.search.seeds)]

    def _last_known(self, number: int) -> int:
        """The last point whose result counts in the choice of point `number`."""
        index = self.numbering.index_of(number)
        first_of_pack = self.numbering.number_of(index - index % self.pack)
        return max(-1, first_of_pack - 1 - (self.lag - 1) * self.pack)

    def _ask(self, number: int) -> Point:
        """The value that this number had before, or a new one of Optuna's."""
        search = self.config.search
        earlier = next((trial.point for trial in self.earlier.values() if trial.point.number == number), None)
        if earlier is not None:
            self.study.enqueue_trial(self._params(earlier))
        elif self.numbering.index_of(number) < self.num_spread:
            self.study.enqueue_trial(self._first_params(number))
        self.study.sampler = _sampler(search.sampler, seed=self.config.train.seed + number)
        asked = self.study.ask(dict(self.space))
        if earlier is None and (other := self._instead_of(number, asked.params)) is not None:
            self.study.tell(asked, state=TrialState.FAIL)
            self.study.enqueue_trial({"tau": other})
            asked = self.study.ask(dict(self.space))
        self._asked[number] = asked
        scales = {name.removeprefix(SCALE): value for name, value in asked.params.items() if name.startswith(SCALE)}
        if scales:
            scales = {self.groups[0]: 1.0, **scales}
        tau, lr_per_tau, rate = (asked.params.get(name) for name in ("tau", "lr_per_tau", "learning_rate"))
        assert tau is not None
        tau_2 = asked.params.get("tau_2")
        return Point(
            number, tau, lr_per_tau, learning_rate=rate, group_scales=scales or None,
            tau_2=math.inf if tau_2 == search.tau_2_high else tau_2,
        )  # fmt: skip

    def _first_params(self, number: int) -> dict[str, float]:
        """One of the values that are spread, of tau and, where they are searched, of the rate and of tau_2."""
        params = {"tau": self._spread(number), **self._rate_in_turn(number)}
        if "tau_2" in self.space:
            index = self.numbering.index_of(number)
            params["tau_2"] = spread_tau_2(index, self.num_spread, self.config.search)
        return params

    def _spread(self, number: int) -> float:
        """One of the first values; of those after the ones that the sweep began with, in the widest gap."""
        index, begun_with = self.numbering.index_of(number), min(self.num_spread, self.numbering.num_values)
        if index < begun_with:
            return spread_tau(index, begun_with, self.config.search)
        return widest_gap_tau([point.tau for point in self._before(number)], self.config.search)

    def _rate_in_turn(self, number: int) -> dict[str, float]:
        """Of the first values each next one has the next learning rate, where several are tried."""
        if not self.config.search.learning_rates:
            return {}
        rates = searched_rates(self.config)
        return {"learning_rate": rates[self.numbering.index_of(number) % len(rates)]}

    def _before(self, number: int) -> list[Point]:
        """The points with lower numbers from which Optuna learns."""
        points = [self._points[other] for other in sorted(self._points) if other < number]
        return [point for point in points if self._informs(point)]

    def _instead_of(self, number: int, params: dict[str, float]) -> float | None:
        """Where the sampler asks again for a tau that was fitted, one halfway to the nearest other value; else None.

        Where values are already that close, as at a bound that is best, it is the middle of the widest gap.
        """
        log_tau, fitted = math.log(params["tau"]), [math.log(point.tau) for point in self._before(number)]
        others = [other for other in fitted if abs(other - log_tau) > SAME]
        if len(params) > 1 or not others or len(others) == len(fitted):
            return None
        halfway = (log_tau + min(others, key=lambda other: abs(other - log_tau))) / 2
        if min(abs(other - halfway) for other in fitted) <= SAME:
            return widest_gap_tau(list(map(math.exp, fitted)), self.config.search)
        return math.exp(halfway)

    def _tell_up_to(self, number: int) -> bool:
        """Tell Optuna the values up to `number`, in their order; False while one of them still runs."""
        for told in range(self._num_told, number + 1):
            point, objectives = self._points[told], self._objectives[told]
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
        return point.method == "map" and point.rank is None and is_within(self.space, self._params(point))

    def _params(self, point: Point) -> dict[str, float]:
        """The point's place in the search space; what it does not say is as configured."""
        prior, train = self.config.prior, self.config.train
        return params_in(
            self.space,
            tau=point.tau,
            tau_2=point.tau_2,
            lr_per_tau=train.lr_per_tau if point.lr_per_tau is None else point.lr_per_tau,
            learning_rate=self.config.learning_rate if point.learning_rate is None else point.learning_rate,
            group_scales=prior.group_scales if point.group_scales is None else point.group_scales,
        )

    def _tell(self, point: Point, mean: float) -> None:
        failed = not math.isfinite(mean)
        if point.number in self._asked:
            state = TrialState.FAIL if failed else TrialState.COMPLETE
            self.study.tell(self._asked.pop(point.number), None if failed else mean, state)
        elif not failed:
            params = self._params(point)
            told = optuna.trial.create_trial(value=mean, params=params, distributions=dict[str, Any](self.space))
            self.study.add_trial(told)


def _sampler(name: str, seed: int) -> BaseSampler:
    match name:
        case "tpe":
            return TPESampler(seed=seed, n_startup_trials=NUM_STARTUP, multivariate=True)
        case "gp":
            return GPSampler(seed=seed, n_startup_trials=NUM_STARTUP)
        case _:
            return RandomSampler(seed=seed)
