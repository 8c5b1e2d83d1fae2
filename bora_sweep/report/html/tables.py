"""The page's tables: the text of every cell, beside the value that it is sorted by."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from bora_sweep.report.frames import overall_frame
from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.gains import END_NAMES, Gain, gains_against
from bora_sweep.report.stats.significance import GAINS, LOSES, UNKNOWN
from bora_sweep.report.stats.summary import SPLITS, Summary
from bora_sweep.report.text import tables
from bora_sweep.report.text.formats import (
    Table,
    difference_text,
    level_interval_text,
    level_text,
    number_text,
    p_text,
    perplexity_text,
    short_names,
    significant_text,
    tau_text,
    visible,
)
from bora_sweep.report.text.measured import plain_label, suffix
from bora_sweep.report.text.pooling import factor_text

_SHORT = 26
"""Letters of a task's name for which a chart has room."""
_VERDICTS = {GAINS: f"▲ {GAINS}", LOSES: f"▼ {LOSES}", UNKNOWN: UNKNOWN}
_VERDICT_STYLES = {_VERDICTS[GAINS]: "gains", _VERDICTS[LOSES]: "loses", _VERDICTS[UNKNOWN]: "open"}


@dataclass(frozen=True)
class Column:
    """A column of a table of the page."""

    name: str
    title: str
    texts: Sequence[str] | None = None
    values: Sequence[Any] | np.ndarray | None = None
    """To sort by, and for charts; without them the texts are sorted."""
    kind: str = "number"
    """`number` and `text` are cells, `head` the row's heading, `name` a heading that selects the row; `hidden` is for
    charts alone; `state`, `verdict`, `interval` and `long` are cells with a look of their own."""
    more: dict[str, Any] = field(default_factory=dict)
    """What that look needs."""


@dataclass(frozen=True)
class PageTable:
    """A table as the page's scripts take it."""

    label: str
    columns: list[Column]
    sorted_by: str | None = None
    descending: bool = False
    bold: list[int] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Columns in order; their values and texts by name."""
        return {
            "label": self.label,
            "columns": [{"name": c.name, "title": c.title, "kind": c.kind, **c.more} for c in self.columns],
            "values": {column.name: column.values for column in self.columns if column.values is not None},
            "texts": {column.name: column.texts for column in self.columns if column.texts is not None},
            "sorted": self.sorted_by,
            "descending": self.descending,
            "bold": self.bold,
        }


def numbers(
    name: str, title: str, values: Iterable[float], text: Callable[[float], str] = number_text, **more: Any
) -> Column:
    """A column of numbers with their texts; what is not known is NaN."""
    known = [math.nan if pd.isna(value) else float(value) for value in values]
    return Column(name, title, [text(value) for value in known], known, **more)


def task_table(analysis: Analysis, others: list[Analysis], names_are_few: bool) -> PageTable:
    """Each task: its size, level at the ends and the best, gains with verdicts, and the distance of Figure 4.

    Args:
        analysis: Of the run.
        others: By other measures; their columns are for charts alone.
        names_are_few: The charts draw an interval for each task, so their ends are kept.
    """
    summary, best = analysis.summary, analysis.summary.best
    names = [visible(task) for task in summary.tasks]
    columns = [
        Column("task", "Task", names, kind="name"),
        Column("short", "", short_names(names, _SHORT), kind="hidden"),
        numbers("documents", "Documents", summary.train_documents_D),
        *_levels(analysis),
        _level_texts(analysis),
    ]
    if names_are_few:
        levels = analysis.task_levels.levels(best)
        columns.append(Column("best_low", "", None, [level.low for level in levels], "hidden"))
        columns.append(Column("best_high", "", None, [level.high for level in levels], "hidden"))
    columns += _all_gain_columns(analysis)
    factors = [] if analysis.pooling is None else [task.estimate for task in analysis.pooling.tasks]
    if not np.isnan(factors).all():
        hint = {"hint": "Pooling factor: 0, the task is on its own; 1, it is as all"}
        columns.append(numbers("pooling", "Pooling", factors, factor_text, more=hint))
    m = summary.best_between
    if m is not None and not np.isnan(summary.distance_DM[:, m]).all():
        title = f"Distance at τ = {tau_text(summary.settings[m].tau)}"
        columns.append(numbers("distance", title, summary.distance_DM[:, m], significant_text))
    for other in others:
        hidden = [_level_texts(other), *_all_gain_columns(other)]
        columns += [replace(c, name=f"{c.name}{suffix(other)}", kind="hidden") for c in hidden if c.kind != "interval"]
    return PageTable("Tasks", columns, sorted_by="documents", descending=True)


def _levels(analysis: Analysis) -> list[Column]:
    summary, text = analysis.summary, level_text(analysis.measure)
    named = [("independent", "τ = 0", summary.independent), ("best", f"τ = {tau_text(summary.best_tau)}", summary.best)]
    named.append(("shared", "τ = ∞", summary.shared))
    shown = [(name, title, m) for name, title, m in named if m is not None and (name == "best" or m != summary.best)]
    columns = [numbers(name, title, analysis.scores.test_DM[:, m], text) for name, title, m in shown]
    has_floor = not np.isnan(analysis.floor_D).all()
    return [*columns, numbers("floor", "Floor", analysis.floor_D, perplexity_text)] if has_floor else columns


def _level_texts(analysis: Analysis) -> Column:
    """Each task's level at the best tau with its interval, for what is read of it."""
    levels = analysis.task_levels.levels(analysis.summary.best)
    texts = [level_interval_text(level, analysis.measure) for level in levels]
    texts = [text if is_tested else "–" for text, is_tested in zip(texts, analysis.tested_D, strict=True)]
    return Column("level", "", texts, kind="hidden")


def _all_gain_columns(analysis: Analysis) -> list[Column]:
    parts = {reference: gains_against(analysis.task_gains, reference) for reference in END_NAMES}
    return [
        column
        for reference, gains in parts.items()
        if gains
        for column in _gain_columns(reference, {gain.task: gain for gain in gains}, analysis)
    ]


def _gain_columns(reference: str, gain_of: dict[str | None, Gain], analysis: Analysis) -> list[Column]:
    """Gains against one end; a task without test documents has dashes."""
    measure, end = analysis.measure, f"vs τ = {tables.END_TAUS[reference]}"
    gains = [gain_of.get(task) for task in analysis.summary.tasks]
    hint = {"hint": f"How far {plain_label(measure)} lies {measure.better_side} {END_NAMES[reference]}"}
    estimate, low, high = (
        [math.nan if gain is None else getattr(gain.interval, part) for gain in gains]
        for part in ("estimate", "low", "high")
    )
    ends = np.abs([value for value in (*low, *high) if math.isfinite(value)])
    limit = float(np.quantile(ends, 0.98, method="higher")) if len(ends) else 0.0
    drawing = {"of": f"gain_{reference}", "limit": limit or 0.01, "color": reference}
    texts = ["–" if gain is None else difference_text(gain.interval, measure) for gain in gains]
    verdicts = ["–" if gain is None else _VERDICTS[gain.verdict] for gain in gains]
    look = {"styles": _VERDICT_STYLES, "hints": f"p_{reference}", "hinted": "p (Holm)"}
    return [
        Column(f"gain_{reference}", f"Gain {end}", texts, estimate, more=hint),
        Column(f"interval_{reference}", "", kind="interval", more=drawing),
        Column(f"verdict_{reference}", f"Verdict {end}", verdicts, kind="verdict", more=look),
        Column(f"gain_{reference}_low", "", None, low, "hidden"),
        Column(f"gain_{reference}_high", "", None, high, "hidden"),
        Column(
            f"p_{reference}", "", ["–" if gain is None else p_text(gain.adjusted_p) for gain in gains], kind="hidden"
        ),
    ]


def task_filters(gains: list[Gain]) -> list[dict[str, str]]:
    """What the list beside the search offers: the tasks with one verdict."""
    found = dict.fromkeys(gain.reference for gain in gains)
    return [
        {
            "value": f"{reference}/{verdict}",
            "text": f"{verdict}, against {END_NAMES[reference]}",
            "column": f"verdict_{reference}",
            "equals": shown,
        }
        for reference in END_NAMES
        if reference in found
        for verdict, shown in _VERDICTS.items()
    ]


def overall_table(analysis: Analysis) -> PageTable:
    """Table 1, as `report.md` has it."""
    summary, table, frame = analysis.summary, tables.overall_table(analysis), overall_frame(analysis)
    settings = [summary.settings[m] for m in (summary.zero_shot, *summary.fits) if m is not None]
    name, difference = analysis.measure.name, f"{analysis.measure.difference_name}_to_best"
    by = [frame["tau"].where(frame["method"] == "map", -1.0), frame["learning_rate"], frame["seeds"]]
    by += [[max(setting.epochs) for setting in settings], frame[f"validation_{name}"], frame[f"test_{name}"]]
    by += [frame[f"test_macro_{name}"], frame[difference]]
    is_simpler = frame["one_standard_error"] & ~frame["best"]
    for i in np.flatnonzero(is_simpler):
        table.rows[i][0] += " (one standard error)"
    return of_table("Every τ", table, by, sorted_by=0)


def methods_table(analysis: Analysis, compared: pd.DataFrame) -> PageTable:
    """Methods compared, as `report.md` has them."""
    name, difference = analysis.measure.name, f"{analysis.measure.difference_name}_to_reference"
    names = ["seeds", f"validation_{name}", f"test_{name}", difference, "train_tokens"]
    names += ["search_train_tokens", "train_seconds", "search_train_seconds"]
    by = [None, *(compared[name] for name in names)]
    return of_table("Methods compared", tables.method_table(analysis, compared), by, 3, analysis.measure.is_metric)


def split_table(summary: Summary) -> PageTable:
    """Documents and scored tokens of each split."""
    documents_DL, tokens_DL = summary.num_documents_DL, summary.num_tokens_DL
    columns = [
        Column("split", "Split", SPLITS, kind="head"),
        numbers("documents", "Documents", documents_DL.sum(axis=0)),
        numbers("tokens", "Tokens", tokens_DL.sum(axis=0)),
        numbers("fewest", "Fewest of a task", documents_DL.min(axis=0)),
        numbers("median", "Median", np.median(documents_DL, axis=0)),
        numbers("most", "Most", documents_DL.max(axis=0)),
    ]
    return PageTable("Splits", columns)


def version_table(rows: list[tuple[str, str]]) -> PageTable:
    """Versions of packages, and devices."""
    names, versions = ([row[i] for row in rows] for i in range(2))
    return PageTable(
        "Versions", [Column("package", "Package", names, kind="head"), Column("version", "Version", versions)]
    )


def of_words(label: str, table: Table, kind: str = "number") -> PageTable:
    """A table of `report.md`, sorted by its texts.

    Args:
        label: What a screen reader calls it.
        table: Its first column is the rows' heading.
        kind: Of the other columns.
    """
    columns = [
        Column(f"column_{j}", title, [row[j] for row in table.rows], kind=kind if j else "head")
        for j, title in enumerate(table.columns)
    ]
    return PageTable(label, columns, bold=sorted({i for i, _ in table.bold}))


def of_table(
    label: str, table: Table, values: Sequence[Any], sorted_by: int | None = None, descending: bool = False
) -> PageTable:
    """A table of `report.md`; rows below the last of `values` stay last.

    Args:
        label: What a screen reader calls it.
        table: Its first column is the rows' heading.
        values: For each column what it is sorted by; None for its texts.
        sorted_by: The column that it is sorted by at first.
        descending: Largest first.
    """
    columns = []
    for j, (title, of_column) in enumerate(zip(table.columns, values, strict=True)):
        known = None if of_column is None else [math.nan if pd.isna(value) else float(value) for value in of_column]
        known = None if known is None else known + [math.nan] * (len(table.rows) - len(known))
        columns.append(Column(f"column_{j}", title, [row[j] for row in table.rows], known, "number" if j else "head"))
    bold = sorted({i for i, _ in table.bold})
    return PageTable(label, columns, None if sorted_by is None else f"column_{sorted_by}", descending, bold)
