"""What a figure draws, as entries of its legend: no mark without an entry, no entry without a mark."""

import numpy as np

from bora_sweep.report.figures.data import ROLES, BySize, Poolings, TauCurve
from bora_sweep.report.figures.style import MOST_NAMES
from bora_sweep.report.stats.gains import END_NAMES
from bora_sweep.report.text.formats import tau_text

Entry = tuple[str, str, str]
"""A key of `PALETTE`, the mark, and the text."""


def tau_legend(data: TauCurve, measure: str, as_good_by: str) -> list[Entry]:
    """Of Figure 2.

    Args:
        data: Of the figure.
        measure: What is drawn, in words.
        as_good_by: By what tau was chosen, in words, after `validation`; maybe empty.
    """
    fits, best = data.fits, data.best_text.removeprefix("best: ")
    names = END_NAMES | {"best": f"best, {best}"}
    roles = set(fits["role"])
    entries = [(role, mark, names[role]) for role, mark in ROLES.items() if role in roles]
    if True in set(fits["one_standard_error"]):
        entries.append(("best", "open-diamond", "by one standard error"))
    if "" in roles:
        entries.append(("ink", "dot", "other values of τ"))
    if np.isfinite(fits[["low", "high"]].to_numpy(float)).all(axis=1).any():
        entries.append(("task", "band", "95% interval of each τ alone"))
    parts = [is_dotted for part, is_dotted in data.axis.parts() if part.stop - part.start > 1]
    if not data.smooth.empty:
        entries.append(("ink", "line", "smooth curve with the 95% band of its shape"))
    elif not all(parts):
        entries.append(("ink", "line", f"{measure} of all tasks"))
    if any(parts):
        entries.append(("ink", "line-dotted", "to the ends of τ"))
    entries += [("floor", "line-dashed", str(name)) for name in data.references["name"]]
    if data.as_good is not None:
        entries.append(("best", "strip", f"τ as good as the best on validation{as_good_by}"))
    return [*entries, ("task", "line-thin", "one task")] if data.drawn else entries


def by_size_legend(data: BySize) -> list[Entry]:
    """Of Figures 3 to 5."""
    entries: list[Entry] = []
    for name, series in data.series.items():
        is_open = data.points.loc[data.points["series"] == name, "is_open"].astype(bool)
        label, mark = series.label or "one task", series.marker
        if not is_open.all():
            entries.append((series.color, mark, f"{label}, a verdict" if is_open.any() else label))
        if is_open.any():
            entries.append((series.color, f"open-{mark}", f"{label}, no verdict"))
    (first, *others) = data.series.values()
    bar, line = ("task", "task") if others else (first.color, first.line_color)
    if has_intervals(data):
        entries.append((bar, "bar", "95% interval"))
    return entries if data.lines.empty else [*entries, (line, "line", "trend with its 95% band")]


def pooling_legend(data: Poolings) -> list[Entry]:
    """Of Figure 6."""
    names = {
        "independent": "no pooling (τ = 0)",
        "best": f"partial pooling (τ = {tau_text(data.tau)})",
        "shared": "complete pooling (τ = ∞)",
    }
    entries = [(role, ROLES[role], text) for role, text in names.items()]
    has_bars = not np.isnan(data.rows["low"].to_numpy(float)).all()
    return [*entries, ("best", "bar", "its 95% interval")] if has_bars else entries


def has_intervals(data: BySize) -> bool:
    """Tasks are few enough for an interval each, and some have one."""
    are_few = len(set(data.points["task"])) <= MOST_NAMES
    return are_few and not np.isnan(data.points["low"].to_numpy(float)).all()
