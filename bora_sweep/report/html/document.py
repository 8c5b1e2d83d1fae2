"""What the page shows, as one JSON document: the report's words, tables and charts.

A number is rounded to six significant digits; NaN is null, infinity the text `Infinity`.
"""

import json
import math
from typing import Any

import numpy as np
import pandas as pd

from bora_sweep.report.figures.data import BySize, TaskSizes, TauCurve
from bora_sweep.report.figures.style import MOST_NAMES
from bora_sweep.report.html import charts, tables
from bora_sweep.report.html.trials import (
    Columns,
    configuration,
    cost_text,
    duration_text,
    total,
    trial_columns,
    trial_table,
)
from bora_sweep.report.html.words import words
from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.method_comparison import Method
from bora_sweep.report.stats.summary import TRAIN
from bora_sweep.report.text import notes, sections
from bora_sweep.report.text.answer import answer, best_method, tasks_that_gain, where_best_tau_lies
from bora_sweep.report.text.captions import CaptionedFigure, captioned_figures
from bora_sweep.report.text.formats import markdown_text, number_text, perplexity_text, tau_text, visible
from bora_sweep.report.text.tau_section import tau_section

FIGURES = (
    "figure_1_task_sizes", "figure_2_tau_perplexity", "figure_3_improvement", "figure_4_distance",
    "figure_5_perplexity_by_size",
)  # fmt: skip
"""The figures of the report that the page has a chart of."""
_DIGITS = 6
_EXACT = 2**53  # whole numbers that JavaScript holds


def make_document(
    analysis: Analysis, methods: list[Method], compared: pd.DataFrame, curves: pd.DataFrame
) -> dict[str, Any]:
    """The document, of plain values and arrays.

    Args:
        analysis: Of a run, or of several.
        methods: `compare_methods`.
        compared: `method_frame` of them; empty where there is nothing to compare.
        curves: The table `curves`.
    """
    summary = analysis.summary
    trials, settings = trial_columns(summary), configuration(summary)
    figures = captioned_figures(analysis)
    drawn, legends = _charts(figures, analysis)
    remark = drawn["each"].pop("remark")
    drawn["learning"] = charts.learning_chart(curves, trials, summary)
    are_few = len(summary.tasks) <= MOST_NAMES
    markdown = _markdown(analysis, methods, compared, trials) | {
        "tau": f"*Change* is each task's perplexity against its own at the best τ.{remark}",
        "settings": f"The whole configuration of trial {markdown_text(settings['trial'])}, of the best fit; keys that "
        "differ between trials are marked.",
    }
    markdown |= {f"figure_{n}": figure.caption for n, figure in enumerate(figures, start=1)}
    return {
        "runs": [visible(run.rstrip("/").rpartition("/")[2] or run) for run in dict.fromkeys(summary.trials["run"])],
        "words": {name: words(text) for name, text in markdown.items()},
        "facts": _facts(analysis, trials),
        "are_few": are_few,
        "num_tasks": charts.tasks_text(len(summary.tasks)),
        "tables": {
            "tasks": tables.task_table(analysis, are_few).to_json(),
            "taus": tables.overall_table(analysis).to_json(),
            "methods": None if compared.empty else tables.methods_table(summary, compared).to_json(),
            "trials": trial_table(trials).to_json(),
            "splits": tables.split_table(summary).to_json(),
            "versions": tables.version_table(settings["versions"]).to_json(),
        },
        "filters": tables.task_filters(analysis.task_gains),
        "charts": drawn,
        "tips": charts.tips(analysis),
        "legends": legends,
        "configuration": {name: settings[name] for name in ("trial", "lines", "differ")},
    }


def _charts(figures: list[CaptionedFigure], analysis: Analysis) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures 1 to 5, None where the results do not hold one; and the legends."""
    data_of = {figure.name: figure.data for figure in figures}
    sizes, tau, gains, distance, perplexity = (data_of[name] for name in FIGURES)
    assert isinstance(sizes, TaskSizes)
    assert isinstance(tau, TauCurve)
    assert isinstance(perplexity, BySize)
    made: dict[str, Any] = {
        "sizes": charts.sizes_chart(sizes),
        "overall": charts.overall_chart(tau, analysis),
        "each": charts.each_chart(tau),
        "perplexity": charts.size_chart(
            perplexity, {"best": {"value": "best", "low": "best_low", "high": "best_high"}}, []
        ),
        "gains": None,
        "distance": None,
    }
    if isinstance(gains, BySize):
        columns = {name: {"value": f"gain_{name}"} for name in gains.series}
        columns = {name: of | {end: f"{of['value']}_{end}" for end in ("low", "high")} for name, of in columns.items()}
        made["gains"] = charts.size_chart(gains, columns, [])
    if isinstance(distance, BySize):
        tip = [["distance ", {"of": "distance"}]]
        made["distance"] = charts.size_chart(distance, {"best": {"value": "distance"}}, tip)
    return made, charts.legends(tau, gains if isinstance(gains, BySize) else None, analysis)


def to_json(document: dict[str, Any]) -> str:
    """ASCII without <, > and &: within a `script` element nothing in it can end the element or begin a comment."""
    text = json.dumps(_plain(document), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&"})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (float, np.floating)):
        return _rounded(float(value))
    return value.item() if isinstance(value, np.generic) else value


def _rounded(value: float) -> float | int | str | None:
    if math.isnan(value):
        return None
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    is_exact = value == round(value) and abs(value) < _EXACT
    rounded = value if is_exact else float(f"{value:.{_DIGITS}g}")
    return int(rounded) if rounded == round(rounded) and abs(rounded) < _EXACT else rounded


def _facts(analysis: Analysis, trials: Columns) -> list[tuple[str, str, str]]:
    """Name, value and a remark, for the row below the answer."""
    summary, choice = analysis.summary, analysis.choice
    test = analysis.bootstrap.perplexity(summary.best)
    as_good = None if choice.curve is None else choice.curve.as_good
    validation = "on validation"
    if as_good is not None:
        validation = f"as good on validation: {tau_text(as_good.low)} to {tau_text(as_good.high)}"
    num_documents, num_tokens = float(summary.train_documents_D.sum()), float(summary.num_tokens_DL[:, TRAIN].sum())
    sizes = f"{number_text(num_documents)} training documents, {number_text(num_tokens)} tokens"
    simpler = tau_text(summary.settings[choice.one_standard_error].tau)
    interval = f"95% interval {perplexity_text(test.low)} to {perplexity_text(test.high)}"
    states = trials["status"]
    return [
        ("Best τ", tau_text(summary.best_tau), validation),
        ("τ by one standard error", simpler, "the largest within one standard error of the best"),
        ("Test perplexity", perplexity_text(test.estimate), interval),
        ("Tasks", f"{len(summary.tasks):,}", sizes),
        ("Trials finished", f"{states.count('finished'):,}", f"of {len(states):,} begun"),
        ("Training", duration_text(total(trials["train_seconds"])), "all trials added up"),
    ]


def _markdown(analysis: Analysis, methods: list[Method], compared: pd.DataFrame, trials: Columns) -> dict[str, str]:
    """Markdown by its place in the page: the words of `report.md`, and what that has no place for."""
    summary = analysis.summary
    return {
        "answer": f"{answer(analysis)}\n\n{where_best_tau_lies(summary)} {best_method(summary, methods)}".rstrip(),
        "notes": f"{notes.warnings(summary, methods)}\n\n{notes.protocol(summary)}",
        "choosing": tau_section(analysis),
        "table_1": sections.overall(analysis),
        "methods": sections.methods(summary, compared),
        "verdicts": tasks_that_gain(analysis),
        "tasks": f"{sections.about_verdicts(analysis) if analysis.task_gains else ''} "
        "[Each τ](tables/table_a1.csv), [gains](tables/improvements.csv).",
        "learning": "Perplexity on validation after each epoch, 0 being the model before training; dotted, on the "
        "training split over the epoch, while the adapters moved. Of long curves evenly spaced epochs are shown, the "
        "first, the best and the last among them.",
        "cost": markdown_text(cost_text(trials), 400),
        "trials": "*Seconds* are of training alone. CPU and GPU time is those seconds times what the trial reserved "
        "(ray.cpus_per_trial, ray.gpus_per_trial, ray.workers_per_trial). "
        "Every column: [trials.csv](tables/trials.csv).",
        "measured": sections.measured(analysis),
    }
