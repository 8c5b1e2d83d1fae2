"""Methods side by side: what each reaches, and what it costs with the fits that it is made from."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from bora_sweep.report.stats.bootstrap import Bootstrap, Interval
from bora_sweep.report.stats.gains import END_NAMES
from bora_sweep.report.stats.summary import Key, Setting, Summary
from bora_sweep.report.text.formats import Table, number_text, percent_text, perplexity_text
from bora_sweep.report.text.tables import taus_text, unusual

_NAMES = END_NAMES | {
    "zero_shot": "zero-shot",
    "bora": "BoRA",
    "fine_tuned": "shared, then fine-tuned per task",
    "average": "merged: average",
    "ties": "merged: TIES",
    "dare": "merged: DARE",
    "pfedme": "pFedMe",
    "vi": "variational",
}


@dataclass(frozen=True)
class Method:
    """A row of the comparison: the setting with the lowest validation perplexity of those in `tried`."""

    name: str
    setting: int
    tried: list[int]


@dataclass(frozen=True)
class Cost:
    """Sums over trials; NaN where one of them does not tell."""

    train_tokens: float
    train_seconds: float


def compare_methods(summary: Summary) -> list[Method]:
    """Methods in ascending test perplexity; none where there is nothing beside zero-shot and the fits over tau.

    A method that was fitted at several ranks has a row at the rank of the fits over tau, and one at the rank that is
    best on validation.
    """
    if not summary.others:
        return []
    usual_rank, _, _ = summary.structure
    kinds: dict[tuple, list[int]] = {}
    for m, setting in enumerate(summary.settings):
        _, variant, groups = setting.structure
        kinds.setdefault((_kind(setting), variant, groups is None), []).append(m)
    methods = []
    for members in kinds.values():
        usual = [m for m in members if summary.settings[m].structure[0] in (None, usual_rank)]
        methods += [_best_of(summary, tried) for tried in ([members] if usual in ([], members) else [usual, members])]
    return sorted(methods, key=lambda method: _ascending(summary.settings[method.setting].test_perplexity))


def _ascending(perplexity: float) -> float:
    return math.inf if math.isnan(perplexity) else perplexity


def _kind(setting: Setting) -> str:
    """The method; of MAP fits, the two ends and BoRA between them."""
    _, _, groups = setting.structure
    ends = {0.0: "independent", math.inf: "shared"} if groups is None else {}
    return ends.get(setting.tau, "bora") if setting.method == "map" else setting.method


def _best_of(summary: Summary, tried: list[int]) -> Method:
    best = min(tried, key=lambda m: summary.settings[m].objective)
    setting = summary.settings[best]
    kind = _kind(setting)
    told = [_NAMES.get(kind, kind)]
    if kind in ("bora", "pfedme", "vi"):
        told.append(f"τ = {taus_text(setting.tau, setting.structure)}")
    usual_rank, usual_variant, _ = summary.structure
    ranks = sorted({rank for m in tried if (rank := summary.settings[m].structure[0]) is not None})
    told += unusual(setting.structure, usual_rank if len(ranks) < 2 else None, usual_variant)
    if len(ranks) > 1:
        told.append(f"best of {', '.join(map(str, ranks))}")
    return Method(", ".join(told), best, tried)


def reference(summary: Summary) -> int:
    """What methods are compared with: BoRA at its best tau; without one tau for all, any BoRA; without BoRA, an end."""
    bora = summary.between or [m for m, setting in enumerate(summary.settings) if _kind(setting) == "bora"]
    return min(bora or summary.fits, key=lambda m: summary.settings[m].objective)


def cost(trials: pd.DataFrame, keys: Iterable[Key]) -> Cost:
    """Of `keys` and of all trials that they were made from, directly or not, each counted once.

    Args:
        trials: The table `trials`, with `run`.
        keys: Run and trial_id of each.
    """
    table = trials.set_index(["run", "trial_id"])
    made_from = table["started_from"].dropna().to_dict()
    plural, waiting = set(), list(keys)
    while waiting:
        run, trial_id = waiting.pop()
        if (run, trial_id) not in plural:
            plural.add((run, trial_id))
            waiting += [(run, name.strip()) for name in made_from.get((run, trial_id), "").split(",") if name.strip()]
    table = table.assign(  # older results have the rate alone
        train_tokens=table["train_tokens"].fillna(table["tokens_per_second"] * table["train_seconds"])
    )
    spent = table.reindex(pd.MultiIndex.from_tuples(sorted(plural)))[["train_tokens", "train_seconds"]]
    return Cost(*spent.to_numpy(dtype=float).sum(axis=0).tolist())


def method_numbers(summary: Summary, bootstrap: Bootstrap, methods: list[Method]) -> pd.DataFrame:
    """The comparison as numbers."""
    rows = []
    for method in methods:
        setting, test = summary.settings[method.setting], bootstrap.perplexity(method.setting)
        difference = bootstrap.relative_difference(method.setting, reference(summary))
        own = cost(summary.trials, setting.trials)
        search = cost(summary.trials, [key for m in method.tried for key in summary.settings[m].tried])
        rank, variant, groups = setting.structure
        rows.append(
            {
                "name": method.name,
                "method": setting.method,
                "tau": setting.tau,
                "lora_rank": rank,
                "lora_variant": variant,
                "prior_groups": groups,
                "seeds": setting.seeds,
                "validation_perplexity": setting.validation_perplexity,
                "test_perplexity": test.estimate,
                "test_low": test.low,
                "test_high": test.high,
                "is_reference": method.setting == reference(summary),
                "relative_difference_to_reference": difference.estimate,
                "low": difference.low,
                "high": difference.high,
                "train_tokens": own.train_tokens,
                "train_seconds": own.train_seconds,
                "search_train_tokens": search.train_tokens,
                "search_train_seconds": search.train_seconds,
            }
        )
    return pd.DataFrame(rows).astype({"lora_rank": "Int64"} if rows else {})


def method_table(summary: Summary, numbers: pd.DataFrame) -> Table:
    """The comparison; the lowest validation perplexity in bold."""
    best = summary.settings[reference(summary)]
    against = f"Test vs τ = {taus_text(best.tau, best.structure)}"
    table = Table(
        ["Method", "Seeds", "Validation", "Test", against, "Tokens", "of the search", "Seconds", "of the search"]
    )
    for row in numbers.to_dict("records"):
        ends = (perplexity_text(row[end]) for end in ("test_low", "test_high"))
        difference = Interval(row["relative_difference_to_reference"], row["low"], row["high"])
        amounts = ("train_tokens", "search_train_tokens", "train_seconds", "search_train_seconds")
        table.rows.append(
            [
                row["name"],
                str(row["seeds"]),
                perplexity_text(row["validation_perplexity"]),
                f"{perplexity_text(row['test_perplexity'])} [{', '.join(ends)}]",
                "0" if row["is_reference"] else percent_text(difference),
                *(number_text(row[name]) for name in amounts),
            ]
        )
    lowest = numbers["validation_perplexity"].argmin()
    table.bold = {(int(lowest), j) for j in range(len(table.columns))}
    return table
