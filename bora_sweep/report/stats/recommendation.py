"""What to serve: the simplest option that no other is certainly better than, by the test documents.

An option is one fit for each way to serve: the base as it is, one adapter for all tasks, or one for each. Validation
chose the fit of each; the test documents decide between the ways. The simplest is that with the fewest adapters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bora_sweep.config import ONE_FOR_ALL
from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.gains import Gain, gains_against, gains_of
from bora_sweep.report.stats.interval import Contrast, Interval
from bora_sweep.report.stats.summary import Setting, Summary

MATTERS = 0.05
"""A difference that would change what to serve: 5% of perplexity, 5 points of a share, 5% of another score."""
SMALL = 0.01
"""A difference, on the same scale, that hardly anyone would notice."""

Kind = Literal["base", "shared", "bora", "independent", "other"]
Relation = Literal["worse", "ties", "better", "unknown"]


@dataclass(frozen=True)
class Option:
    """A way to serve the tasks."""

    kind: Kind
    setting: int
    """In `Summary.settings`."""
    num_adapters: int

    @property
    def is_own(self) -> bool:
        """Each task has an adapter of its own."""
        return self.kind in ("bora", "independent") or (self.kind == "other" and self.num_adapters > 1)


@dataclass(frozen=True)
class Alternative:
    """An option beside the one that is recommended."""

    option: Option
    worse: Interval
    """How much worse it is on test than the recommended one; above 0 where it is worse. Of perplexity a fraction."""
    gain: Interval
    """How much better the recommended one is than it; above 0 where that is better."""
    possible_gain: float
    """The most that it may be better, by its 95% interval; NaN where that is not known."""
    beaten_by: Option | None
    """Of an option that is simpler than the recommended one: one that is certainly better than it. None of others."""

    @property
    def relation(self) -> Relation:
        """Of this option to the recommended one."""
        if math.isnan(self.worse.low) or math.isnan(self.worse.high):
            return "unknown"
        if not self.worse.excludes_zero:
            return "ties"
        return "worse" if self.worse.low > 0 else "better"


@dataclass(frozen=True)
class Recommendation:
    """What to serve, and how it compares with the other ways."""

    served: Option
    alternatives: list[Alternative]
    """In the order of `options`."""
    undecided: Alternative | None
    """An option of more adapters that may be better by more than `MATTERS`, which the test documents do not decide."""
    nearly_as_good: Alternative | None
    """Where each task's own adapter is served: one for all, if it is certainly worse, but by less than `SMALL`."""
    own: Option | None
    """The way to give each task its own adapter, of which `task_gains` are."""
    single: Option | None
    """What `task_gains` are over: what is served, if that is one adapter or none; else one for all, else the base."""
    task_gains: list[Gain]
    """Of each task with test documents; empty without both options."""
    before: float
    """Validation perplexity before training, where no zero-shot trial tells what the base does; else NaN."""
    after: float
    """The lowest of any fit after an epoch, where `before` is known."""

    @property
    def only_base(self) -> bool:
        """No adapter is better than the base, on validation alone: no trial scored the base on test."""
        return not math.isnan(self.before) and not self.after < self.before


def recommend(analysis: Analysis) -> Recommendation:
    """What to serve, by the measure that chose tau.

    Args:
        analysis: By that measure.
    """
    summary, bootstrap = analysis.summary, analysis.bootstrap
    ways = options(summary)
    contrasts = {(a.setting, b.setting): bootstrap.contrast(a.setting, b.setting) for a in ways for b in ways}
    served = next(
        (way for way in ways if not any(_is_certain(contrasts[o.setting, way.setting]) for o in ways if o != way)),
        ways[-1],
    )
    place = ways.index(served)
    alternatives = [_alternative(analysis, option, served, contrasts, ways) for option in ways[:place]]
    alternatives += [_alternative(analysis, option, served, contrasts) for option in ways[place + 1 :]]
    own = served if served.is_own else next((way for way in ways if way.is_own), None)
    single = served if not served.is_own else next((way for way in ways if way.kind == "shared"), None)
    single = single or next((way for way in ways if not way.is_own), None)
    before, after = _without_zero_shot(summary)
    return Recommendation(
        served=served,
        alternatives=alternatives,
        undecided=_undecided(analysis, served, alternatives),
        nearly_as_good=_nearly_as_good(analysis, served, alternatives),
        own=own,
        single=single,
        task_gains=_task_gains(analysis, own, single),
        before=before,
        after=after,
    )


def options(summary: Summary) -> list[Option]:
    """The ways to serve: fewest adapters first, of as many the best on validation first.

    Of the methods and ranks beside the fits over tau, there is one with a single adapter and one with many: those that
    are best on validation.
    """
    settings, num_tasks = summary.settings, len(summary.tasks)
    kinds: list[tuple[Kind, int | None, int]] = [
        ("base", summary.zero_shot, 0),
        ("shared", summary.shared, 1),
        ("bora", summary.best_between, num_tasks),
        ("independent", summary.independent, num_tasks),
    ]
    found = [Option(kind, m, count) for kind, m, count in kinds if m is not None]
    for is_single in (True, False):
        others = [m for m in summary.others if _is_single(settings[m]) == is_single]
        if others:
            best = min(others, key=lambda m: settings[m].order)
            found.append(Option("other", best, 1 if is_single else num_tasks))
    return sorted(found, key=lambda option: (option.num_adapters, *settings[option.setting].order))


def _is_single(setting: Setting) -> bool:
    """One adapter serves all tasks."""
    return setting.method in ONE_FOR_ALL or (
        setting.method == "map" and setting.tau == math.inf and setting.structure[2:] == (None, None)
    )


def _is_certain(contrast: Contrast) -> bool:
    """The first setting is better than the second, by its 95% interval."""
    return bool(contrast.bounds[1] < 0)


def _alternative(
    analysis: Analysis,
    option: Option,
    served: Option,
    contrasts: dict[tuple[int, int], Contrast],
    rivals: Sequence[Option] = (),
) -> Alternative:
    """How an option compares; `rivals` are those that may beat it, of an option that is simpler than `served`."""
    this, other = contrasts[option.setting, served.setting], contrasts[served.setting, option.setting]
    worse = -this.difference() if analysis.measure.is_metric else this.difference()
    beating = [way for way in rivals if way != option and _is_certain(contrasts[way.setting, option.setting])]
    return Alternative(option, worse, other.gain(), this.gain().high, beating[0] if beating else None)


def _undecided(analysis: Analysis, served: Option, alternatives: list[Alternative]) -> Alternative | None:
    """Of each number of adapters above that of `served`, the option that is best on validation is asked."""
    limit, asked = MATTERS * _scale(analysis, served), set()
    for alternative in alternatives:
        count = alternative.option.num_adapters
        if count <= served.num_adapters or count in asked:
            continue
        asked.add(count)
        if alternative.relation == "unknown" or (alternative.relation == "ties" and alternative.possible_gain > limit):
            return alternative
    return None


def _nearly_as_good(analysis: Analysis, served: Option, alternatives: list[Alternative]) -> Alternative | None:
    single = next((a for a in alternatives if a.option.num_adapters == 1), None)
    if not served.is_own or single is None or single.relation != "worse":
        return None
    return single if single.worse.high < SMALL * _scale(analysis, served) else None


def _scale(analysis: Analysis, served: Option) -> float:
    """What 1 means of `MATTERS` and `SMALL`: differences of some scores are no fractions, so the score itself."""
    return abs(analysis.bootstrap.level(served.setting).estimate) if analysis.measure.unit == "number" else 1.0


def _task_gains(analysis: Analysis, own: Option | None, single: Option | None) -> list[Gain]:
    """The gains of each task by an adapter of its own."""
    if own is None or single is None:
        return []
    if own.setting == analysis.summary.best and single.kind == "shared":
        return gains_against(analysis.task_gains, "shared")
    return gains_of(analysis.summary, analysis.scores.test, own.setting, [(single.kind, single.setting)])


def _without_zero_shot(summary: Summary) -> tuple[float, float]:
    """Validation perplexity before training, and the lowest after it, where no zero-shot trial has finished."""
    fits = [summary.settings[m] for m in summary.fits]
    begun = [fit.curves[0].before for fit in fits if fit.curves and not _starts_elsewhere(summary, fit)]
    if summary.zero_shot is not None or not begun:
        return math.nan, math.nan
    trained = [curve.validation_E[curve.epoch_E > 0] for fit in fits for curve in fit.curves]
    return begun[0], float(np.nanmin(np.concatenate([*trained, [math.inf]])))


def _starts_elsewhere(summary: Summary, setting: Setting) -> bool:
    """The fit began with adapters of another one, so that its epoch 0 is not the base."""
    rows = summary.trials.set_index(["run", "trial_id"]).loc[setting.trials]
    begun = rows["config_json"].dropna().str.contains('"init_from": "', regex=False)
    return bool(rows["started_from"].notna().any() or begun.any())
