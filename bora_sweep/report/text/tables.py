"""The report's tables as text, for Markdown and LaTeX."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.gains import END_NAMES
from bora_sweep.report.stats.interval import Interval
from bora_sweep.report.stats.method_comparison import reference_setting
from bora_sweep.report.stats.significance import UNKNOWN
from bora_sweep.report.stats.summary import SPLITS, Summary, structure_of
from bora_sweep.report.text.formats import (
    Table,
    difference_text,
    level_interval_text,
    level_text,
    number_text,
    p_text,
    perplexity_text,
    tau_text,
)
from bora_sweep.report.text.setting_names import setting_name, taus_text

_MOST_TAUS = 8
END_TAUS = {"independent": "0", "shared": "∞"}


def overall_table(analysis: Analysis) -> Table:
    """Table 1: zero-shot, every tau ascending, and the true source where it is known; the best tau in bold."""
    summary, measure = analysis.summary, analysis.measure
    table = Table(["τ", "Learning rate", "Seeds", "Epochs (best)", "Validation", "Test", "Test, macro", "Test vs best"])
    for m in (summary.zero_shot, *summary.fits):
        if m is None:
            continue
        setting, is_fit = summary.settings[m], m != summary.zero_shot
        if m == summary.best:
            table.bold = {(len(table.rows), j) for j in range(len(table.columns))}
        difference = difference_text(analysis.bootstrap.difference(m, summary.best), measure)
        table.rows.append(
            [
                tau_text(setting.tau) if is_fit else "zero-shot",
                f"{setting.learning_rate:.3g}" if is_fit else "",
                str(setting.seeds) if is_fit else "",
                f"{_range(setting.epochs)} ({_range(setting.best_epochs)})" if is_fit else "",
                level_interval_text(analysis.validation.level(m), measure),
                level_interval_text(analysis.bootstrap.level(m), measure),
                level_interval_text(analysis.macro(m), measure),
                "best" if m == summary.best else difference,
            ]
        )
    if not math.isnan(analysis.floor):
        macro = perplexity_text(float(analysis.floor_D[analysis.tested].mean()))
        table.rows.append(["floor (the true source)", *[""] * 4, perplexity_text(analysis.floor), macro, ""])
    return table


def _range(values: list[float]) -> str:
    if any(math.isnan(value) for value in values):
        return "–"
    low, high = min(values), max(values)
    return f"{low:.0f}" if low == high else f"{low:.0f}–{high:.0f}"


def choice_table(analysis: Analysis) -> Table:
    """The best tau on validation, and the largest within one standard error."""
    choice, summary, measure = analysis.choice, analysis.summary, analysis.measure
    best = measure.best_word
    table = Table(["Choice", "τ", "Validation", f"Validation vs {best}", "Test", f"Test vs {best}"])
    rows = [(f"{best} on validation", choice.minimum), ("one standard error", choice.one_standard_error)]
    for name, m in rows:
        is_best = m == choice.minimum
        table.rows.append(
            [
                name,
                tau_text(summary.settings[m].tau),
                level_interval_text(analysis.validation.level(m), measure),
                "–" if is_best else difference_text(choice.above_minimum[m].difference(), measure),
                level_interval_text(analysis.bootstrap.level(m), measure),
                "–" if is_best else difference_text(analysis.bootstrap.difference(m, choice.minimum), measure),
            ]
        )
    return table


def method_table(analysis: Analysis, methods: pd.DataFrame) -> Table:
    """Methods compared; the best on validation in bold.

    Args:
        analysis: Of the run.
        methods: `method_frame`, with a row or more.
    """
    summary, measure = analysis.summary, analysis.measure
    reference = summary.settings[reference_setting(summary)]
    against = f"Test vs τ = {taus_text(reference.tau, reference.structure)}"
    table = Table(
        ["Method", "Seeds", "Validation", "Test", against, "Tokens", "of the search", "Seconds", "of the search"]
    )
    for row in methods.to_dict("records"):
        difference = Interval(row[f"{measure.difference_name}_to_reference"], row["low"], row["high"])
        costs = ("train_tokens", "search_train_tokens", "train_seconds", "search_train_seconds")
        table.rows.append(
            [
                row["name"],
                str(row["seeds"]),
                level_text(measure)(row[f"validation_{measure.name}"]),
                level_interval_text(Interval(row[f"test_{measure.name}"], row["test_low"], row["test_high"]), measure),
                "0" if row["is_reference"] else difference_text(difference, measure),
                *(number_text(row[name]) for name in costs),
            ]
        )
    best = measure.rank(methods[f"validation_{measure.name}"].to_numpy(float)).argmin()
    table.bold = {(int(best), j) for j in range(len(table.columns))}
    return table


def verdict_table(analysis: Analysis, tasks: Sequence[int]) -> Table:
    """Table 2: tasks under the best fit, and against each end of tau; verdicts in bold.

    Args:
        analysis: Of the run.
        tasks: A row for each; they have test documents.
    """
    summary, gains = analysis.summary, {(gain.task, gain.reference): gain for gain in analysis.task_gains}
    references = [reference for reference in END_NAMES if any(reference == gain[1] for gain in gains)]
    table = Table(["Task", "Test documents", f"τ = {tau_text(summary.best_tau)}"])
    for reference in references:
        table.columns += [f"{analysis.measure.better_side} τ = {END_TAUS[reference]}", "p (Holm)", "Verdict"]
    for i, d in enumerate(tasks):
        gains_of_task = [gains[summary.tasks[d], reference] for reference in references]
        level = analysis.task_levels.level(d, summary.best)
        row = [summary.tasks[d], f"{gains_of_task[0].test_documents:,.0f}"]
        row.append(level_interval_text(level, analysis.measure))
        for gain in gains_of_task:
            row += [difference_text(gain.interval, analysis.measure), p_text(gain.adjusted_p), gain.verdict]
        table.rows.append(row)
        table.bold |= {(i, 5 + 3 * c) for c, gain in enumerate(gains_of_task) if gain.verdict != UNKNOWN}
    return table


def task_table(analysis: Analysis, tasks: Sequence[int], intervals: bool = True) -> Table:
    """Table A.1: at most eight values of tau, the ends and the best among them; each row's best in bold.

    A task without test documents has dashes.

    Args:
        analysis: Of the run.
        tasks: A row for each.
        intervals: Show each level's interval; without them the table fits a printed page.
    """
    summary, measure = analysis.summary, analysis.measure
    fits = shown_fits(summary)
    shown = fits if summary.zero_shot is None else [summary.zero_shot, *fits]
    labels = [f"τ = {tau_text(summary.settings[m].tau)}" if m in fits else "zero-shot" for m in shown]
    has_floor = not np.isnan(analysis.floor_D).all()
    table = Table(["Task", "Training documents", *labels, *(["floor"] if has_floor else [])])
    for i, d in enumerate(tasks):
        levels = [analysis.task_levels.level(d, m) for m in shown]
        cells = [
            level_interval_text(level, measure) if intervals else level_text(measure)(level.estimate)
            for level in levels
        ]
        cells = cells if analysis.tested_D[d] else ["–"] * len(shown)
        floor = [perplexity_text(analysis.floor_D[d])] if has_floor else []
        table.rows.append([summary.tasks[d], f"{summary.train_documents_D[d]:,.0f}", *cells, *floor])
        best = fits[int(measure.rank(analysis.scores.test_DM[d, fits]).argmin())]
        table.bold |= {(i, 2 + shown.index(best))} if analysis.tested_D[d] else set()
    return table


def shown_fits(summary: Summary) -> list[int]:
    """The fits in Table A.1: all, or of many both ends, the best, and others spread evenly."""
    if len(summary.fits) <= _MOST_TAUS:
        return summary.fits
    spread = np.linspace(0, len(summary.fits) - 1, _MOST_TAUS - 1).round().astype(int)
    return sorted({summary.fits[j] for j in spread} | {summary.best})


def trial_table(summary: Summary) -> Table:
    """Every trial, finished or not."""
    table = Table(["Trial", "Status", "τ, or method", "Seed", "Epochs", "Stopped by", "Seconds", "Tokens/s", "Error"])
    trials = summary.trials.sort_values(["tau", "seed", "trial_id"], na_position="first")
    for row in trials.to_dict("records"):
        table.rows.append(
            [
                str(row["trial_id"]),
                str(row["status"]),
                setting_name(row["method"], row["tau"], structure_of(row), summary.structure),
                *(number_text(row[name]) for name in ("seed", "epochs")),
                "–" if pd.isna(row["stopped_by"]) else str(row["stopped_by"]),
                *(number_text(row[name]) for name in ("train_seconds", "tokens_per_second")),
                "" if pd.isna(row["error"]) else str(row["error"]),
            ]
        )
    return table


def split_table(summary: Summary) -> Table:
    """Documents and scored tokens of each split: of all tasks together, and the spread over tasks."""
    table = Table(["Split", "Documents", "Tokens", "Fewest documents of a task", "Median", "Most"])
    for i, split in enumerate(SPLITS):
        documents_D = summary.num_documents_DL[:, i]
        totals = [documents_D.sum(), summary.num_tokens_DL[:, i].sum()]
        spread = [documents_D.min(), np.median(documents_D), documents_D.max()]
        table.rows.append([split, *(number_text(count) for count in totals + spread)])
    return table
