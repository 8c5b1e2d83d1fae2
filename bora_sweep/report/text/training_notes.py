"""Notes on how training went: what was not trained to the end, what was trained too far, and what lies at an edge.

They are of the fits that a reader acts on: the best, the ends of tau, what is recommended, and the methods compared.
"""

import json
import math
from collections.abc import Iterable
from typing import Any

from bora_sweep.report.stats.learning import Overfitting
from bora_sweep.report.stats.method_comparison import Method
from bora_sweep.report.stats.summary import Setting, Summary
from bora_sweep.report.text.formats import change_text, markdown_text, perplexity_text, tau_text
from bora_sweep.report.text.setting_names import method_name

RISE = 0.05
"""Of validation perplexity above its lowest, by the end of a fit, that is told; patience lets each rise a little."""
EARLY = 1
"""A fit whose best epoch is this or an earlier one, with several more trained, has learnt in too large steps."""
TAU_ZERO = "one model per task"


def not_converged(summary: Summary, methods: list[Method], served: int) -> str:
    """Fits that stopped at the largest number of epochs, which was their best."""
    stopped = [name for m, name in _names(summary, methods, served).items() if summary.settings[m].still_improving]
    if not stopped:
        return ""
    return (
        "Not converged: these fits stopped at train.max_epochs, and validation may still have been improving: "
        f"{'; '.join(stopped)}. Raise train.max_epochs before comparing them."
    )


def stopped_by_user(summary: Summary, methods: list[Method], served: int) -> str:
    """Fits that a user ended."""
    stopped = [name for m, name in _names(summary, methods, served).items() if summary.settings[m].stopped_by_user]
    if not stopped:
        return ""
    return (
        f"Ended early: `bora-sweep stop` ended these fits, and they might have become better: {'; '.join(stopped)}. "
        "How much better or worse they are than others is of what they had learnt by then."
    )


def overfitted(summary: Summary, methods: list[Method], served: int) -> str:
    """Fits whose validation rose while training fell, from which epoch, and what to do."""
    found = {
        m: (name, worst)
        for m, name in _names(summary, methods, served).items()
        if (worst := _worst(summary.settings[m])) is not None
    }
    if not found:
        return ""
    parts = [
        f"{name}: from epoch {one.epoch} on, {perplexity_text(one.lowest)} to {perplexity_text(one.last)} at epoch "
        f"{one.last_epoch} ({change_text(one.rise)})"
        for name, one in found.values()
    ]
    early = " or ".join(
        f"epoch {one.epoch} is as good as none: the steps are too large for it"
        for _, one in found.values()
        if one.epoch <= EARLY
    )
    taus = [summary.settings[m].tau for m in found]
    return (
        f"Overfitted: validation perplexity rose while that of training fell. {'; '.join(parts)}. Scores are of the "
        f"best epoch, so that the rise itself costs nothing{f'; but {early}' if early else ''}. {_remedy(taus)}"
    )


def _remedy(taus: list[float]) -> str:
    only_zero = taus == [0.0]
    first = "A lower train.learning_rate or a smaller lora.rank may give these fits a better best epoch"
    if only_zero:
        return f"{first}, and shrink what the best τ gains over them. A larger τ is what the other fits try."
    larger = ", as may a larger τ" if any(tau < math.inf for tau in taus) else ""
    return f"{first}{larger}."


def _worst(setting: Setting) -> Overfitting | None:
    """The largest rise of a seed that is worth telling."""
    found = [one for curve in setting.curves if (one := curve.overfitting) is not None]
    told = [one for one in found if one.rise > RISE or (one.epoch <= EARLY and one.last_epoch > EARLY + 2)]
    return max(told, key=lambda one: one.rise, default=None)


def _names(summary: Summary, methods: list[Method], served: int) -> dict[int, str]:
    """The fits that matter, by their settings, with what they are."""
    roles: dict[int, list[str]] = {}
    named = {TAU_ZERO: summary.independent, "one model for all": summary.shared, "the best": summary.best}
    named["recommended"] = served if served in summary.fits and served != summary.best else None
    for role, m in named.items():
        if m is not None:
            roles.setdefault(m, []).append(role)
    names = {method.setting: markdown_text(method_name(summary, method)) for method in methods}
    return names | {m: f"τ = {tau_text(summary.settings[m].tau)} ({', '.join(parts)})" for m, parts in roles.items()}


def at_edges(summary: Summary) -> str:
    """Best values of tau, learning rate, lr_per_tau and rank that are the lowest or highest of those tried."""
    return " ".join(note for _, note in edges(summary))


def edges(summary: Summary) -> list[tuple[int | None, str]]:
    """The notes of `at_edges`, each with the setting that it is about."""
    found = [
        (summary.best_between, _tau_at_edge(summary)),
        (summary.best, _rate_at_edge(summary)),
        (summary.best, _coupling_at_edge(summary)),
        _rank_at_edge(summary),
    ]
    return [(m, note) for m, note in found if note]


def _tau_at_edge(summary: Summary) -> str:
    """The best of the finite values above 0 is the lowest or the highest of them."""
    if len(summary.between) < 2 or summary.best_between not in (summary.between[0], summary.between[-1]):
        return ""
    tau = tau_text(summary.settings[summary.best_between].tau)
    if summary.best_between == summary.between[0]:
        return f"τ = {tau} is the lowest value fitted above 0. A lower one may be better (search.taus, search.tau_low)."
    return f"τ = {tau} is the highest finite value fitted. A higher one may be better (search.taus, search.tau_high)."


def _rate_at_edge(summary: Summary) -> str:
    """Of the best fit, several learning rates were tried, and the best is the lowest or the highest."""
    best = summary.settings[summary.best]
    rates = _values(summary, best.candidate_trials, lambda row: row["learning_rate"])
    edge = _edge(best.learning_rate, rates)
    if not edge:
        return _searched_rate_at_edge(summary)
    return (
        f"At τ = {tau_text(best.tau)} the learning rate {best.learning_rate:.3g} is the {edge} of those tried "
        f"({_list(rates)}). A {_beyond(edge)} one may be better (train.learning_rate)."
    )


def _searched_rate_at_edge(summary: Summary) -> str:
    """search.learning_rates were tried over all tau, and that of the best fit is the lowest or the highest."""
    best, fits = summary.settings[summary.best], [key for m in summary.fits for key in summary.settings[m].trials]
    if len(_values(summary, best.candidate_trials, lambda row: row["learning_rate"])) > 1:
        return ""
    if _values(summary, fits, _lr_per_tau):
        return ""  # rates go with tau
    fits = [key for m in summary.fits for key in summary.settings[m].candidate_trials]
    rates = _values(summary, fits, lambda row: row["learning_rate"])
    edge = _edge(best.learning_rate, rates)
    if not edge:
        return ""
    return (
        f"The best fit has the {edge} learning rate tried, {best.learning_rate:.3g} of {_list(rates)}. A "
        f"{_beyond(edge)} one may be better (search.learning_rates)."
    )


def _coupling_at_edge(summary: Summary) -> str:
    """train.lr_per_tau was searched, and that of the best fit is the lowest or the highest tried."""
    fits = [key for m in summary.fits for key in summary.settings[m].candidate_trials]
    values = _values(summary, fits, _lr_per_tau)
    own = _values(summary, summary.settings[summary.best].trials, _lr_per_tau)
    edge = _edge(own[0], values) if len(own) == 1 and len(values) > 2 else ""
    if not edge:
        return ""
    return (
        f"The best fit has the {edge} train.lr_per_tau tried, {own[0]:.3g}. A {_beyond(edge)} one may be better "
        f"(search.lr_per_tau_{'low' if edge == 'lowest' else 'high'})."
    )


def _rank_at_edge(summary: Summary) -> tuple[int | None, str]:
    """Shared fits were made at several ranks, and the best on validation has the highest; with that fit's setting."""
    usual = summary.structure._replace(lora_rank=None)
    same = [
        m
        for m, s in enumerate(summary.settings)
        if s.method == "map" and s.tau == math.inf and s.structure._replace(lora_rank=None) == usual
    ]
    of_fits = [summary.settings[m].structure.lora_rank for m in same]
    ranks = sorted({rank for rank in of_fits if rank is not None})
    if len(ranks) < 2:
        return None, ""
    best = min(same, key=lambda m: summary.settings[m].order)
    rank = summary.settings[best].structure.lora_rank
    if _edge(rank, ranks) != "highest":
        return None, ""  # a smaller rank is cheaper, not better
    return best, (
        f"Of one model for all, rank {rank} is the highest tried ({_list(ranks)}) and the best on validation. A higher "
        "one may be better (search.ranks)."
    )


def _values(summary: Summary, keys: Iterable[tuple[str, str]], value: Any) -> list[float]:
    """What trials were fitted with, each value once, ascending."""
    rows = {(row["run"], row["trial_id"]): row for row in summary.trials.to_dict("records")}
    found = (value(rows[key]) for key in keys)
    return sorted({float(one) for one in found if one is not None and not math.isnan(one)})


def _lr_per_tau(row: dict[Any, Any]) -> float | None:
    config = json.loads(row["config_json"]) if isinstance(row["config_json"], str) else {}
    return config.get("train", {}).get("lr_per_tau")


def _edge(value: Any, tried: list[Any]) -> str:
    """`lowest` or `highest` where there are several; empty where the value lies between."""
    if len(tried) < 2 or value not in (tried[0], tried[-1]):
        return ""
    return "lowest" if value == tried[0] else "highest"


def _beyond(edge: str) -> str:
    return {"lowest": "lower", "highest": "higher"}[edge]


def _list(values: list[Any]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
