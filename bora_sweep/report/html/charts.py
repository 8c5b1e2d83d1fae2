"""The page's charts: the data of the figures, with axes, marks, legends and what is read of a point.

D tasks in the order of `Summary.tasks`, V values of tau that are shown.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from bora_sweep.report.figures import legends
from bora_sweep.report.figures.data import ROLES, BySize, Poolings, TaskSizes, TauCurve, change_quantity
from bora_sweep.report.figures.legends import by_size_legend, has_intervals, pooling_legend
from bora_sweep.report.figures.tau_axis import TauAxis
from bora_sweep.report.html.axes import count_axis, document_axis, places_axis, quantity_axis, tau_axis, value_axis
from bora_sweep.report.html.trials import Columns, learning_curves, spread
from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.likeness import Likeness
from bora_sweep.report.stats.many_tasks import drawn_tasks
from bora_sweep.report.stats.summary import Summary
from bora_sweep.report.text import tables
from bora_sweep.report.text.formats import difference_text, level_interval_text, level_text, tau_text, visible
from bora_sweep.report.text.measured import chosen_by, plain_label
from bora_sweep.report.text.pooling import factor_text

MOST_TAUS, MOST_POINTS = 24, 60_000
"""Values of tau at which the page has each task's perplexity, and of all tasks together: fewer values where tasks are
many, the ends and the best among them in any case, others spread evenly."""
_SPLITS = ("train", "validation")
_KEYS = "Arrow keys go from {one} to {one}, Enter keeps one."

Chart = dict[str, Any]


def sizes_chart(data: TaskSizes, analysis: Analysis) -> Chart:
    """Figure 1."""
    return {
        "axis": count_axis("Training documents", data.bars["documents"].to_numpy().max(), pad=0.06),
        "values": "documents",
        "drawn": _drawn(analysis),
        "label": f"Training documents of each task, most first. {_KEYS.format(one='task')}",
    }


def overall_chart(data: TauCurve, analysis: Analysis) -> Chart:
    """Figure 2, left: all tasks together."""
    fits = data.fits
    ends = (fits["low"], fits["high"], fits["level"], data.references["level"])
    return {
        "x": tau_axis(data.axis),
        "y": quantity_axis(data.y, *ends),
        "fits": fits.drop(columns=["setting", "tau"]).to_dict("list"),
        "parts": _parts(data.axis),
        "smooth": data.smooth.iloc[::4].to_dict("list"),
        "references": data.references.to_dict("list"),
        "as_good": data.as_good,
        "best_text": data.best_text,
        "is_better_above": data.y.is_better_above,
        "marks": ROLES,
        "tips": [_fit_tip(fit, analysis) for fit in fits.to_dict("records")],
        "label": f"{data.y.title} of all tasks together over the precision τ. Arrow keys go from value to value.",
    }


def _parts(axis: TauAxis) -> list[tuple[int, int, bool]]:
    """Where each stretch of a line over tau begins and ends, and whether it is dotted."""
    return [(part.start, part.stop, is_dotted) for part, is_dotted in axis.parts()]


def _fit_tip(fit: dict[Any, Any], analysis: Analysis) -> list[str]:
    summary, measure, m = analysis.summary, analysis.measure, int(fit["setting"])
    lines = [
        f"τ = {tau_text(fit['tau'])}",
        f"test {plain_label(measure)} {level_interval_text(analysis.bootstrap.level(m), measure)}",
        f"validation {level_text(measure)(float(analysis.scores.validation_M[m]))}",
        f"best on validation{chosen_by(summary, plain_label)}"
        if m == summary.best
        else f"{difference_text(analysis.bootstrap.difference(m, summary.best), measure)} against the best",
    ]
    return [*lines, "the one-standard-error choice"] if fit["one_standard_error"] else lines


def each_chart(data: TauCurve, analysis: Analysis) -> Chart:
    """Figure 2, right: each task with test documents, its level and the change to its own at the best tau.

    A drawing of some 300 pixels shows no more than four digits.
    """
    taus, best = data.axis.taus, int(np.flatnonzero(data.fits["role"] == "best")[0])
    most = max(8, min(MOST_TAUS, MOST_POINTS // len(data.tasks_DV)))
    shown = spread(range(len(taus)), {0, best, len(taus) - 1}, most)
    measure = analysis.measure
    change_DV = measure.change(data.tasks_DV[:, shown], data.tasks_DV[:, [best]])
    change = change_quantity(analysis, f"Test {plain_label(measure)} against the best τ")
    views = {"relative": (change, change_DV), "absolute": (data.y, data.tasks_DV[:, shown])}
    return {
        "x": tau_axis(data.axis),
        "places": data.axis.x[shown],
        "parts": _parts(TauAxis([taus[i] for i in shown])),
        "best": shown.index(best),
        "views": {
            name: {"y": quantity_axis(quantity, values_DV), "values": _of_all_tasks(significant(values_DV), analysis)}
            for name, (quantity, values_DV) in views.items()
        },
        "drawn": _drawn(analysis),
        "label": f"Test {plain_label(measure)} of {data.each_title[:1].lower()}{data.each_title[1:]} over τ. "
        f"{_KEYS.format(one='task')}",
        "heading": data.each_title,
        "remark": f" Tasks are drawn at {len(shown)} of {len(taus)} values of τ." if len(shown) < len(taus) else "",
    }


def _drawn(analysis: Analysis) -> list[int] | None:
    """The tasks that a chart draws; None: all."""
    drawn = drawn_tasks(analysis)
    return drawn if len(drawn) < len(analysis.tested) else None


def _of_all_tasks(values_DV: np.ndarray, analysis: Analysis) -> np.ndarray:
    """Rows of the tasks with test documents among those of all tasks; the others are NaN."""
    all_DV = np.full((len(analysis.summary.tasks), values_DV.shape[1]), np.nan)
    all_DV[analysis.tested] = values_DV
    return all_DV


def significant(values: np.ndarray, digits: int = 4) -> np.ndarray:
    """Rounded to so many significant digits."""
    with np.errstate(divide="ignore", invalid="ignore"):
        exponent = digits - 1 - np.floor(np.log10(np.abs(values)))
        scale = 10.0 ** np.where(np.isfinite(exponent), np.clip(exponent, -300, 300), 0)
        return np.where(np.isfinite(values), np.round(values * scale) / scale, values)


def tasks_text(count: int) -> str:
    """`1 task`, `5,000 tasks`."""
    return f"{count:,} task{'' if count == 1 else 's'}"


def size_chart(
    data: BySize,
    columns: dict[str, dict[str, str]],
    tip: list[Any],
    analysis: Analysis,
    lines: list[Any] | None = None,
) -> Chart:
    """Figures 3, 4 and 5.

    Args:
        data: Of the figure.
        columns: Of each series, the columns of the table of tasks that hold its `value`, `low` and `high`.
        tip: What is read of a point beside `lines`.
        analysis: Of the run, by the measure of the figure.
        lines: What is read of every point; None: what is read of a task elsewhere.
    """
    points, regressions, tasks, places = data.points, data.lines, analysis.summary.tasks, data.places
    drawn = (points["low"], points["high"]) if has_intervals(data) else ()
    zero = ([0.0],) if data.y.is_change else ()
    values = (points["value"], *drawn, regressions["low"], regressions["high"], *zero)
    series = []
    for name, style in data.series.items():
        is_open = points.loc[points["series"] == name].set_index("task")["is_open"].reindex(tasks, fill_value=False)
        line = regressions.loc[regressions["series"] == name]
        series.append(
            asdict(style)
            | {"columns": {part: column for part, column in columns[name].items() if part == "value" or drawn}}
            | {"is_open": is_open.astype(int).tolist() if sum(is_open) else None}
            | {"line": line.drop(columns="series").iloc[::3].to_dict("list")}
        )
    return {
        "x": document_axis(data.x_title, points["documents"]) if places is None else places_axis(data.x_title, places),
        "places": None if places is None else [places.get(task) for task in tasks],
        "y": quantity_axis(data.y, *values),
        "is_change": data.y.is_change,
        "has_intervals": bool(drawn),
        "drawn": _drawn(analysis),
        "series": series,
        "tip": tip,
        "lines": lines,
        "legend": by_size_legend(data),
        "label": f"{data.y.title}. {data.x_title}. {_KEYS.format(one='task')}",
    }


def pooling_chart(data: Poolings, analysis: Analysis) -> Chart:
    """Figure 6; a row is a task of the table of tasks, or a group of tasks, which is not read by itself."""
    rows, levels = data.rows, [data.rows[name] for name in (*ROLES, "low", "high")]
    what = "groups of tasks" if data.is_grouped else "each task"
    return {
        "axis": quantity_axis(data.x, *levels),
        "rows": {name: rows[name].to_numpy() for name in (*ROLES, "low", "high")},
        "names": rows["text"].tolist() if data.is_grouped else None,
        "tasks": None if data.is_grouped else analysis.tested,
        "factors": [factor_text(factor) for factor in rows["factor"]] if data.has_factors else None,
        "marks": ROLES,
        "legend": pooling_legend(data),
        "label": f"{data.x.title} of {what}, most training documents first, without, with partial and with complete "
        f"pooling.{'' if data.is_grouped else ' ' + _KEYS.format(one='task')}",
    }


def learning_chart(curves: pd.DataFrame, trials: Columns, summary: Summary) -> Chart | None:
    """Validation perplexity of every trial by epoch; None before a trial has a curve."""
    shown = learning_curves(curves, trials)
    if not any(curve["split"] == "validation" for curve in shown):
        return None
    rows = {key: n for n, key in enumerate(zip(trials["run"], trials["trial_id"], strict=True))}
    settings = {role: getattr(summary, role) for role in ROLES}
    return {
        "x": count_axis("Epoch", max(curve["epoch"][-1] for curve in shown), pad=0.01),
        "y": value_axis("Perplexity", *(curve["perplexity"] for curve in shown)),
        "curves": shown,
        "roles": {role: [] if m is None else [rows[key] for key in summary.settings[m].trials]
                  for role, m in settings.items()},
        "label": f"Validation perplexity of each trial by epoch. {_KEYS.format(one='trial')}",
    }  # fmt: skip


def tips(analysis: Analysis) -> dict[str, Any]:
    """What is read of a task and of a trial: the column of its name, and lines of text and of columns' texts."""
    return {
        "tasks": {"name": "task", "lines": task_lines(analysis)},
        "trials": {
            "name": "name",
            "lines": [
                ["seed ", {"of": "seed"}, ", ", {"of": "status"}],
                ["epochs (best): ", {"of": "epochs"}],
                ["validation perplexity ", {"of": "validation_perplexity"}, ", test ", {"of": "test_perplexity"}],
            ],
        },
    }


def task_lines(analysis: Analysis, end: str = "") -> list[Any]:
    """What is read of a task by one measure; its columns' names have `end` at their end."""
    references = dict.fromkeys(gain.reference for gain in analysis.task_gains)
    gains = [
        [{"of": f"gain_{name}{end}"}, f" against τ = {tables.END_TAUS[name]}: ", {"of": f"verdict_{name}{end}"}]
        for name in references
    ]
    name, tau = plain_label(analysis.measure), tau_text(analysis.summary.best_tau)
    level = [f"test {name} ", {"of": f"level{end}"}, f" at τ = {tau}"]
    return [["training documents: ", {"of": "documents"}], level, *gains]


def tau_legend(data: TauCurve, analysis: Analysis) -> list[legends.Entry]:
    """Of both parts of Figure 2."""
    measure, by = plain_label(analysis.measure), chosen_by(analysis.summary, plain_label)
    return legends.tau_legend(data, f"test {measure}", by)


def learning_legend(chart: Chart | None, tau: list[legends.Entry]) -> list[legends.Entry]:
    """Of the learning curves: the fits that Figure 2 marks, with the names that they have there."""
    if chart is None:
        return []
    drawn = {split: {curve["trial"] for curve in chart["curves"] if curve["split"] == split} for split in _SPLITS}
    names = {color: text for color, mark, text in tau if mark == ROLES.get(color)}
    marked = {role: drawn["validation"].intersection(rows) for role, rows in chart["roles"].items() if role in names}
    entries = [(role, "line", names[role]) for role, rows in marked.items() if rows]
    if drawn["validation"] - set().union(*marked.values()):
        entries.append(("task", "line", "other fits"))
    if drawn["train"] & set().union(*marked.values()):
        entries.append(("task", "line-dotted", "on the training split"))
    return entries


def likeness_chart(alike: Likeness | None) -> Chart | None:
    """The map of similarities, rows and columns in the order of the tree; None of very many tasks, or of none."""
    if alike is None or alike.similarity_KK is None:
        return None
    return {
        "tasks": [visible(task) for task in alike.tasks],
        "groups": [name or "" for name in alike.group],
        "similarity": np.round(alike.similarity_KK, 2).tolist(),
        "texts": [[f"{value:.2f}".replace("-", "−") for value in row] for row in alike.similarity_KK],
        "label": f"How alike each two of {len(alike.tasks)} tasks are, in the order of their tree.",
    }
