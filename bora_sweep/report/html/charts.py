"""The page's charts: the data of the figures, with axes, marks, legends and what is read of a point.

D tasks in the order of `Summary.tasks`, V values of tau that are shown.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from bora_sweep.report.figures.data import ROLES, BySize, TaskSizes, TauCurve
from bora_sweep.report.figures.style import MOST_NAMES
from bora_sweep.report.figures.tau_axis import TauAxis
from bora_sweep.report.html.axes import count_axis, percent_axis, tau_axis, value_axis
from bora_sweep.report.html.trials import Columns, learning_curves, spread
from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.gains import END_NAMES
from bora_sweep.report.stats.summary import Summary
from bora_sweep.report.text import tables
from bora_sweep.report.text.formats import interval_text, percent_text, perplexity_text, tau_text

MOST_TAUS, MOST_POINTS = 24, 60_000
"""Values of tau at which the page has each task's perplexity, and of all tasks together: fewer values where tasks are
many, the ends and the best among them in any case, others spread evenly."""
_KEYS = "Arrow keys go from {one} to {one}, Enter keeps one."
_DOCUMENTS = "Training documents of the task"

Chart = dict[str, Any]


def sizes_chart(data: TaskSizes) -> Chart:
    """Figure 1."""
    return {
        "axis": count_axis("Training documents", data.bars["documents"].to_numpy().max(), pad=0.06),
        "values": "documents",
        "label": f"Training documents of each task, most first. {_KEYS.format(one='task')}",
    }


def overall_chart(data: TauCurve, analysis: Analysis) -> Chart:
    """Figure 2, left: all tasks together."""
    fits = data.fits
    ends = (fits["low"], fits["high"], data.references["perplexity"])
    return {
        "x": tau_axis(data.axis),
        "y": value_axis("Test perplexity", *ends),
        "fits": fits.drop(columns=["setting", "tau"]).to_dict("list"),
        "parts": _parts(data.axis),
        "smooth": data.smooth.iloc[::4].to_dict("list"),
        "references": data.references.to_dict("list"),
        "as_good": data.as_good,
        "best_text": data.best_text,
        "marks": ROLES,
        "tips": [_fit_tip(fit, analysis) for fit in fits.to_dict("records")],
        "label": "Test perplexity of all tasks together over the precision τ. Arrow keys go from value to value.",
    }


def _parts(axis: TauAxis) -> list[tuple[int, int, bool]]:
    """Where each stretch of a line over tau begins and ends, and whether it is dotted."""
    return [(part.start, part.stop, is_dotted) for part, is_dotted in axis.parts()]


def _fit_tip(fit: dict[Any, Any], analysis: Analysis) -> list[str]:
    summary, m = analysis.summary, int(fit["setting"])
    lines = [
        f"τ = {tau_text(fit['tau'])}",
        f"test perplexity {interval_text(analysis.bootstrap.perplexity(m))}",
        f"validation {perplexity_text(summary.settings[m].validation_perplexity)}",
        "best on validation"
        if m == summary.best
        else f"{percent_text(analysis.bootstrap.relative_difference(m, summary.best))} against the best",
    ]
    return [*lines, "the one-standard-error choice"] if fit["one_standard_error"] else lines


def each_chart(data: TauCurve) -> Chart:
    """Figure 2, right: each task, as perplexity and as the change to its own at the best tau.

    A drawing of some 300 pixels shows no more than four digits.
    """
    taus, best = data.axis.taus, int(np.flatnonzero(data.fits["role"] == "best")[0])
    most = max(8, min(MOST_TAUS, MOST_POINTS // len(data.tasks_DV)))
    shown = spread(range(len(taus)), {0, best, len(taus) - 1}, most)
    tasks_DV = data.tasks_DV[:, shown]
    with np.errstate(invalid="ignore", divide="ignore"):
        change_DV = 100 * (tasks_DV / data.tasks_DV[:, [best]] - 1)
    title = "Test perplexity against the best τ"
    return {
        "x": tau_axis(data.axis),
        "places": data.axis.x[shown],
        "parts": _parts(TauAxis([taus[i] for i in shown])),
        "best": shown.index(best),
        "views": {
            "relative": {"y": percent_axis(title, change_DV, unit=100), "values": significant(change_DV)},
            "absolute": {"y": value_axis("Test perplexity", tasks_DV), "values": significant(tasks_DV)},
        },
        "label": f"Test perplexity of each of {tasks_text(len(tasks_DV))} over τ. {_KEYS.format(one='task')}",
        "heading": f"Each of {tasks_text(len(tasks_DV))}",
        "remark": f" Tasks are drawn at {len(shown)} of {len(taus)} values of τ." if len(shown) < len(taus) else "",
    }


def significant(values: np.ndarray, digits: int = 4) -> np.ndarray:
    """Rounded to so many significant digits."""
    with np.errstate(divide="ignore", invalid="ignore"):
        exponent = digits - 1 - np.floor(np.log10(np.abs(values)))
        scale = 10.0 ** np.where(np.isfinite(exponent), np.clip(exponent, -300, 300), 0)
        return np.where(np.isfinite(values), np.round(values * scale) / scale, values)


def tasks_text(count: int) -> str:
    """`1 task`, `5,000 tasks`."""
    return f"{count:,} task{'' if count == 1 else 's'}"


def size_chart(data: BySize, columns: dict[str, dict[str, str]], tip: list[Any]) -> Chart:
    """Figures 3, 4 and 5.

    Args:
        data: Of the figure.
        columns: Of each series, the columns of the table of tasks that hold its `value`, `low` and `high`.
        tip: What is read of a point beside what is read of every task.
    """
    points, lines = data.points, data.lines
    are_few = len(set(points["task"])) <= MOST_NAMES
    drawn = (points["low"], points["high"]) if are_few and not np.isnan(points["low"].to_numpy(float)).all() else ()
    values = (points["value"], *drawn, lines["low"], lines["high"])
    series = []
    for name, style in data.series.items():
        is_open, line = points.loc[points["series"] == name, "is_open"], lines.loc[lines["series"] == name]
        series.append(
            asdict(style)
            | {"columns": {part: column for part, column in columns[name].items() if part == "value" or drawn}}
            | {"is_open": is_open.astype(int).tolist() if sum(is_open) else None}
            | {"line": line.drop(columns="series").iloc[::3].to_dict("list")}
        )
    return {
        "x": value_axis(_DOCUMENTS, points["documents"], pad=0.04),
        "y": percent_axis(data.y_title, *values) if data.is_percent else value_axis(data.y_title, *values),
        "is_percent": data.is_percent,
        "has_intervals": bool(drawn),
        "series": series,
        "tip": tip,
        "label": f"{data.y_title} against the task’s training documents. {_KEYS.format(one='task')}",
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
    references = dict.fromkeys(gain.reference for gain in analysis.task_gains)
    gains = [
        [{"of": f"gain_{name}"}, f" against τ = {tables.END_TAUS[name]}: ", {"of": f"verdict_{name}"}]
        for name in references
    ]
    level = ["test perplexity ", {"of": "level"}, f" at τ = {tau_text(analysis.summary.best_tau)}"]
    return {
        "tasks": {"name": "task", "lines": [["training documents: ", {"of": "documents"}], level, *gains]},
        "trials": {
            "name": "name",
            "lines": [
                ["seed ", {"of": "seed"}, ", ", {"of": "status"}],
                ["epochs (best): ", {"of": "epochs"}],
                ["validation perplexity ", {"of": "validation_perplexity"}, ", test ", {"of": "test_perplexity"}],
            ],
        },
    }


def legends(data: TauCurve, gains: BySize | None, analysis: Analysis) -> dict[str, list[tuple[str, str, str]]]:
    """Color, mark and text of each entry, by chart."""
    summary, choice = analysis.summary, analysis.choice
    names = END_NAMES | {"best": f"best, τ = {tau_text(summary.best_tau)}"}
    roles = [(role, mark, names[role]) for role, mark in ROLES.items() if getattr(summary, role) is not None]
    tau = [*roles]
    if choice.one_standard_error != choice.minimum:
        simpler = tau_text(summary.settings[choice.one_standard_error].tau)
        tau.append(("best", "open-diamond", f"by one standard error, τ = {simpler}"))
    tau.append(("task", "band", "95% interval of each τ alone"))
    if not data.smooth.empty:
        tau.append(("ink", "line", "smooth curve with the 95% band of its shape"))
    if data.as_good is not None:
        tau.append(("best", "strip", "τ as good as the best on validation"))
    others = [("task", "line", "other fits"), ("task", "line-dotted", "on the training split")]
    series = {} if gains is None else gains.series
    return {
        "tau": tau,
        "learning": [*((role, "line", text) for role, _, text in roles), *others],
        "gains": [(style.color, style.marker, style.label) for style in series.values()],
    }
