"""The report's tables: as text for reading, and as numbers for CSV."""

import json
import math
from dataclasses import astuple

import numpy as np
import pandas as pd

from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.gains import Gain
from bora_sweep.report.stats.significance import UNKNOWN
from bora_sweep.report.stats.summary import SPLITS, Setting, Structure, Summary, structure_of
from bora_sweep.report.stats.trends import Trend
from bora_sweep.report.text.formats import (
    Table,
    level_text,
    number_text,
    p_text,
    percent_text,
    perplexity_text,
    tau_text,
)

_MOST_TAUS = 8
END_TAUS = {"independent": "0", "shared": "∞"}


def gain_numbers(gains: list[Gain]) -> pd.DataFrame:
    """Figure 3 and the verdicts as numbers."""
    columns = ["task", "train_documents", "test_documents", "reference", "improvement", "low", "high"]
    columns += ["p_value", "holm_p_value", "verdict", "smallest_p_value"]
    rows = []
    for gain in gains:
        sizes, judged = (gain.train_documents, gain.test_documents), (gain.adjusted_p, gain.verdict, gain.smallest_p)
        rows.append((gain.task, *sizes, gain.reference, *astuple(gain.interval), gain.p_value, *judged))
    return pd.DataFrame(rows, columns=columns)


def verdict_table(analysis: Analysis) -> Table:
    """Table 2: each task under the best fit, and against either end."""
    summary, gains = analysis.summary, {(gain.task, gain.reference): gain for gain in analysis.task_gains}
    references = list(dict.fromkeys(gain.reference for gain in analysis.task_gains))
    best = f"τ = {tau_text(summary.best_tau)}"
    against = [f"less than at τ = {END_TAUS[reference]}" for reference in references]
    table = Table(
        ["Task", "Test documents", best, *(cell for said in against for cell in (said, "p (Holm)", "Verdict"))]
    )
    for d, task in enumerate(summary.tasks):
        mine = [gains[task, reference] for reference in references]
        row = [task, f"{mine[0].test_documents:,.0f}", level_text(analysis.task_levels.perplexity(d, summary.best))]
        for gain in mine:
            row += [percent_text(gain.interval), p_text(gain.adjusted_p), gain.verdict]
        table.rows.append(row)
        table.bold |= {(d, 5 + 3 * c) for c, gain in enumerate(mine) if gain.verdict != UNKNOWN}
    return table


def trend_numbers(trends: dict[str, Trend]) -> pd.DataFrame:
    """The lines of Figures 3 to 5 as numbers."""
    columns = ["name", "tasks", "per_doubling", "low", "high", "of", "intercept", "coefficient_of_log2_documents"]
    rows = [
        (name, line.num_tasks, *astuple(line.slope), "logarithm" if line.is_log else "value", *line.coefficients)
        for name, line in trends.items()
    ]
    return pd.DataFrame(rows, columns=columns)


def curve_numbers(analysis: Analysis) -> pd.DataFrame:
    """The smooth curves over tau as numbers: of validation, which chooses, and of test, which Figure 2 shows."""
    parts = []
    for split, curve in (("validation", analysis.choice.curve), ("test", analysis.curve)):
        if curve is not None:
            middle_G, (low_G, high_G) = curve.nats_per_token_G, curve.band
            told = {"perplexity": np.exp(middle_G), "low": np.exp(low_G), "high": np.exp(high_G)}
            parts.append(pd.DataFrame({"split": split, "tau": curve.tau_G, **told}))
    return pd.concat(parts) if parts else pd.DataFrame(columns=["split", "tau", "perplexity", "low", "high"])


def setting_text(setting: Setting) -> str:
    """The value of tau, or `zero-shot`."""
    return "zero-shot" if setting.method == "zero_shot" else tau_text(setting.tau)


def overall_numbers(analysis: Analysis) -> pd.DataFrame:
    """Table 1 as numbers: a row for each setting, perplexities and differences to the best with 95% intervals."""
    summary, rows = analysis.summary, []
    for m in _over_tau(summary):
        setting = summary.settings[m]
        told: dict[str, object] = {"method": setting.method, "tau": setting.tau, "best": m == summary.best}
        told["one_standard_error"] = m == analysis.choice.one_standard_error
        told |= {"learning_rate": setting.learning_rate, "seeds": setting.seeds}
        intervals = {
            "validation_perplexity": analysis.choice.bootstrap.perplexity(m),
            "test_perplexity": analysis.bootstrap.perplexity(m),
            "test_macro_perplexity": analysis.macro(m),
            "relative_difference_to_best": analysis.bootstrap.relative_difference(m, summary.best),
            "validation_relative_difference_to_best": analysis.choice.bootstrap.relative_difference(m, summary.best),
        }
        for name, interval in intervals.items():
            told |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
        rows.append(told | {"floor_test_perplexity": summary.floor})
    return pd.DataFrame(rows)


def overall_table(analysis: Analysis) -> Table:
    """Table 1: zero-shot, every tau ascending, and the true source where it is known."""
    summary = analysis.summary
    table = Table(["τ", "Learning rate", "Seeds", "Epochs (best)", "Validation", "Test", "Test, macro", "Test vs best"])
    for m in _over_tau(summary):
        setting, is_fit = summary.settings[m], m != summary.zero_shot
        difference = percent_text(analysis.bootstrap.relative_difference(m, summary.best))
        table.rows.append(
            [
                setting_text(setting),
                f"{setting.learning_rate:.3g}" if is_fit else "",
                str(setting.seeds) if is_fit else "",
                f"{_range(setting.epochs)} ({_range(setting.best_epochs)})" if is_fit else "",
                level_text(analysis.choice.bootstrap.perplexity(m)),
                level_text(analysis.bootstrap.perplexity(m)),
                level_text(analysis.macro(m)),
                "best" if m == summary.best else difference,
            ]
        )
    table.bold = {(_over_tau(summary).index(summary.best), j) for j in range(len(table.columns))}
    if not math.isnan(summary.floor):
        macro = perplexity_text(float(summary.floor_D.mean()))
        table.rows.append(["floor (the true source)", *[""] * 4, perplexity_text(summary.floor), macro, ""])
    return table


def _over_tau(summary: Summary) -> list[int]:
    """Zero-shot, if it is there, and the fits in ascending tau."""
    return summary.fits if summary.zero_shot is None else [summary.zero_shot, *summary.fits]


def _range(values: list[float]) -> str:
    if any(math.isnan(value) for value in values):
        return "–"
    low, high = min(values), max(values)
    return f"{low:.0f}" if low == high else f"{low:.0f}–{high:.0f}"


def task_numbers(analysis: Analysis) -> pd.DataFrame:
    """Table A.1 as numbers: a row for each task, most training documents first; test perplexity by setting."""
    summary = analysis.summary
    columns: dict[str, object] = {"task": summary.tasks}
    columns |= {f"{split}_documents": summary.num_documents_DL[:, i] for i, split in enumerate(SPLITS)}
    with np.errstate(over="ignore"):
        low_DM, high_DM = (np.exp(end_DM) for end_DM in analysis.task_levels.ends)
    for m, setting in enumerate(summary.settings):
        name = _column_name(setting, m in summary.others)
        columns |= {name: summary.perplexity_DM[:, m], f"{name} low": low_DM[:, m], f"{name} high": high_DM[:, m]}
    return pd.DataFrame(columns | {"floor": summary.floor_D})


def _column_name(setting: Setting, is_other: bool) -> str:
    names = [] if setting.method == "map" else [setting.method]
    names += [] if math.isnan(setting.tau) else [f"tau={setting.tau!r}"]
    told = zip(("lora_rank", "lora_variant", "prior_groups"), setting.structure, strict=True)
    return " ".join([*names, *(f"{name}={value}" for name, value in told if is_other and value is not None)])


def task_table(analysis: Analysis, intervals: bool = True) -> Table:
    """Table A.1: the lowest of each row's fits in bold; at most eight values of tau, the ends and the best among them.

    Args:
        analysis: Of the run.
        intervals: Beside each perplexity; without them the table fits a printed page.
    """
    summary = analysis.summary
    fits = shown_fits(summary)
    shown = fits if summary.zero_shot is None else [summary.zero_shot, *fits]
    labels = [f"τ = {setting_text(summary.settings[m])}" if m in fits else "zero-shot" for m in shown]
    has_floor = not np.isnan(summary.floor_D).all()
    table = Table(["Task", "Training documents", *labels, *(["floor"] if has_floor else [])])
    for d, task in enumerate(summary.tasks):
        levels = [analysis.task_levels.perplexity(d, m) for m in shown]
        cells = [level_text(level) if intervals else perplexity_text(level.estimate) for level in levels]
        floor = [perplexity_text(summary.floor_D[d])] if has_floor else []
        table.rows.append([task, f"{summary.train_documents_D[d]:,.0f}", *cells, *floor])
        lowest = fits[int(np.argmin(np.nan_to_num(summary.perplexity_DM[d, fits], nan=math.inf)))]
        table.bold.add((d, 2 + shown.index(lowest)))
    return table


def shown_fits(summary: Summary) -> list[int]:
    """Fits that Table A.1 has room for: all, or both ends, the best, and others spread evenly."""
    if len(summary.fits) <= _MOST_TAUS:
        return summary.fits
    spread = np.linspace(0, len(summary.fits) - 1, _MOST_TAUS - 1).round().astype(int)
    return sorted({summary.fits[j] for j in spread} | {summary.best})


def trial_table(summary: Summary) -> Table:
    """Every trial, finished or not."""
    table = Table(["Trial", "Status", "τ, or method", "Seed", "Epochs", "Stopped by", "Seconds", "Tokens/s", "Error"])
    ordered = summary.trials.sort_values(["tau", "seed", "trial_id"], na_position="first")
    for row in ordered.to_dict("records"):
        table.rows.append(
            [
                str(row["trial_id"]),
                str(row["status"]),
                fit_text(row["method"], row["tau"], structure_of(row), summary.structure),
                *(number_text(row[name]) for name in ("seed", "epochs")),
                "–" if pd.isna(row["stopped_by"]) else str(row["stopped_by"]),
                *(number_text(row[name]) for name in ("train_seconds", "tokens_per_second")),
                "" if pd.isna(row["error"]) else str(row["error"]),
            ]
        )
    return table


def fit_text(method: str, tau: float, structure: Structure, usual: Structure) -> str:
    """`100`, `∞, rank 32`, `ties`, `pfedme, τ = 100`."""
    taus = taus_text(tau, structure)
    told = [taus or "–"] if method == "map" else [method.replace("_", "-"), *([f"τ = {taus}"] if taus else [])]
    usual_rank, usual_variant, _ = usual
    return ", ".join([*told, *unusual(structure, usual_rank, usual_variant)])


def taus_text(tau: float, structure: Structure) -> str:
    """The value of tau, or `10 (attention), 100 (mlp)` where groups have their own; empty where there is no prior."""
    _, _, groups = structure
    if groups is None:
        return "" if math.isnan(tau) else tau_text(tau)
    return ", ".join(f"{tau_text(value)} ({group})" for group, value in json.loads(groups).items())


def unusual(structure: Structure, usual_rank: int | None, usual_variant: str | None) -> list[str]:
    """Rank and variant in words, where they are known and not the usual ones."""
    rank, variant, _ = structure
    told = [] if rank in (None, usual_rank) else [f"rank {rank}"]
    return told if variant in (None, usual_variant) else [*told, variant]


def split_table(summary: Summary) -> Table:
    """Documents and scored tokens of each split, all tasks together and by task."""
    table = Table(["Split", "Documents", "Tokens", "Fewest documents of a task", "Median", "Most"])
    for i, split in enumerate(SPLITS):
        documents_D = summary.num_documents_DL[:, i]
        counts = [documents_D.sum(), summary.num_tokens_DL[:, i].sum()]
        spread = [documents_D.min(), np.median(documents_D), documents_D.max()]
        table.rows.append([split, *(f"{count:,.0f}" for count in counts + spread)])
    return table
