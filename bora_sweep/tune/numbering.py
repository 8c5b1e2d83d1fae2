"""Which number each point of a sweep has: kept in the run, so that a sweep that is extended renumbers nothing.

A number belongs to a point that was given, or to the next of Optuna's values. What is given when the sweep begins comes
first. What is added later follows all numbers that are taken by then.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bora_sweep.config import Config
from bora_sweep.errors import InputError
from bora_sweep.runs.storage import Folder, read_bytes, write_bytes
from bora_sweep.tune.points import LEARNT, Point, preset_points, trial_config, trial_id

POINTS = "points.json"
"""In the folder of a sweep."""


@dataclass(frozen=True)
class Numbering:
    """The numbers of a sweep's points, and what it was begun with."""

    given: dict[int, Point]
    """By number: baselines, and values that the user named."""
    seeds: int
    """`search.seeds` when the sweep began. With one, a trial of the first seed has no number of it in its name."""
    num_values: int
    """`search.num_trials` when the sweep began."""

    def num_points(self, config: Config) -> int:
        """Points of the whole sweep; a path is one.

        Args:
            config: The sweep's.
        """
        return len(self.given) + (config.search.num_trials if config.search.mode == "optuna" else 0)

    def num_fits(self, config: Config) -> int:
        """Fits of the whole sweep.

        Args:
            config: The sweep's.
        """
        num_paths = sum(point.method == "path" for point in self.given.values())
        num_in_paths = num_paths * config.search.num_trials
        return (self.num_points(config) + num_in_paths) * config.search.seeds

    def trial_id(self, number: int, seed_index: int) -> str:
        """The name of a point's trial.

        Args:
            number: Of the point.
            seed_index: Which of its seeds, from 0.
        """
        return trial_id(number, seed_index, self.seeds)

    def index_of(self, number: int) -> int:
        """How many of Optuna's values come before the one of this number."""
        return number - sum(given < number for given in self.given)

    def number_of(self, index: int) -> int:
        """The number of Optuna's value with this index."""
        number = index
        for given in sorted(self.given):
            number += given <= number
        return number

    def with_points(self, points: Iterable[Point], taken: int) -> "Numbering":
        """With further points, which get the next numbers; a point that is there already stays as it is.

        Args:
            points: By whatever numbers; what they start from is among them or there already.
            taken: Numbers below this one are taken, beside those of points that were given.
        """
        points = list(points)
        number_of = {_content(point): number for number, point in self.given.items()}
        content_of = {point.number: _content(point) for point in points}
        given, following = dict(self.given), max(taken - 1, *self.given) + 1
        for point in points:
            if _content(point) in number_of:
                continue
            start = None if point.start_from is None else number_of[content_of[point.start_from]]
            given[following] = replace(point, number=following, start_from=start)
            number_of[_content(point)] = following
            following += 1
        return replace(self, given=given)


def new_numbering(config: Config) -> Numbering:
    """That of a sweep which begins."""
    given = {point.number: point for point in preset_points(config)}
    return Numbering(given, config.search.seeds, config.search.num_trials)


def read_numbering(run: Folder, config: Config) -> Numbering:
    """That of a run; of one that has none yet, or that an older release began, that of its configuration.

    Args:
        run: The run's folder.
        config: The sweep's, as it was when the sweep began.

    Raises:
        InputError: The file is damaged.
    """
    try:
        content = json.loads(read_bytes(run / POINTS))
        given = [Point(**point) for point in content["given"]]
        return Numbering({point.number: point for point in given}, content["seeds"], content["num_values"])
    except FileNotFoundError:
        return new_numbering(config)
    except (ValueError, TypeError, KeyError):
        raise InputError(
            f"{run / POINTS}: damaged, so which trial is which is unknown; restore it from a copy"
        ) from None


def write_numbering(run: Folder, numbering: Numbering) -> None:
    """Write it into the run's folder, atomically."""
    given = [vars(numbering.given[number]) for number in sorted(numbering.given)]
    content = {"given": given, "seeds": numbering.seeds, "num_values": numbering.num_values}
    write_bytes(run / POINTS, json.dumps(content, indent=1).encode())


def extended(before: Config, config: Config, numbering: Numbering, rows: Sequence[dict[str, Any]]) -> Numbering:
    """The numbering of a sweep that goes on with more values, seeds, ranks or baselines.

    Args:
        before: The configuration that the run has.
        config: That which it goes on with.
        numbering: That of the run.
        rows: Of `trials`.

    Raises:
        InputError: It asks for less than the run has.
    """
    for name in ("num_trials", "seeds"):
        had, asked = getattr(before.search, name), getattr(config.search, name)
        if asked < had:
            raise InputError(f"search.{name}={asked}: the run has {had}, and what it has stays; give {had} or more")
    for name in ("taus", "baselines", "ranks", "learning_rates"):
        had, asked = getattr(before.search, name), getattr(config.search, name)
        if missing := [value for value in had if value not in asked]:
            whole = ",".join(_text(value) for value in dict.fromkeys([*had, *asked]))
            raise InputError(
                f"search.{name}=[{','.join(map(_text, asked))}]: the run has {', '.join(map(_text, missing))} too, "
                f"which stays; give search.{name}=[{whole}]"
            )
    started = [int(row["trial_id"].partition(".")[0].partition("-")[0]) for row in rows]
    return numbering.with_points(preset_points(config), max(started, default=-1) + 1)


def check_numbering(run: Folder, config: Config, numbering: Numbering, rows: Iterable[dict[str, Any]]) -> None:
    """Refuse a numbering that is not the one by which the run's trials were fitted, as where its file was lost.

    Args:
        run: The run's folder, for the message.
        config: Of the run.
        numbering: Of the run.
        rows: Of `trials`.

    Raises:
        InputError: A trial is none of the points that the numbering has.
    """
    for row in rows:
        if "." in row["trial_id"]:  # a value within a path
            continue
        number, _, seed_index = row["trial_id"].partition("-")
        point = numbering.given.get(int(number))
        is_named = numbering.trial_id(int(number), int(seed_index or 0)) == row["trial_id"]
        if not is_named or not is_fit_of(row, config, point):
            has = "one of the values that the search chooses" if point is None else _in_words(point)
            raise InputError(
                f"{run / POINTS}: does not number the run's trials: trial {row['trial_id']} was fitted with "
                f"method={row['method']} at tau = {row['tau']:g}, and its number is that of {has}; restore the file "
                "from a copy of the run"
            )


def is_fit_of(row: dict[str, Any], config: Config, point: Point | None) -> bool:
    """Whether a trial was fitted at the point that was given, or, without one, at a value of the search."""
    if point is None:
        return row["method"] == "map" and 0 < row["tau"] < math.inf
    if point.method == LEARNT:
        return bool(row["tau_learnt"])
    wanted, fitted = trial_config(config, point, 0), json.loads(row["config_json"])
    if (row["method"], fitted["lora"]["rank"]) != (wanted.method, wanted.lora.rank):
        return False
    if point.needs_best_tau:
        return True
    prior, rate = fitted["prior"], fitted["train"]["learning_rate"]
    at = wanted.prior.tau, wanted.prior.tau_2, wanted.train.learning_rate
    return (prior["tau"], prior.get("tau_2"), rate) == at


def _in_words(point: Point) -> str:
    rank = "" if point.rank is None else f" and rank {point.rank}"
    return (
        f"method={point.method}{rank}"
        if point.needs_best_tau
        else f"method={point.method} at tau = {point.tau:g}{rank}"
    )


def _content(point: Point) -> tuple[str, float, int | None, float | None, float | None]:
    """What makes a point that is given the same as another, whatever its number."""
    return point.method, point.tau, point.rank, point.learning_rate, point.tau_2


def _text(value: float | str) -> str:
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
