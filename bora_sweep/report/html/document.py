"""What the page shows, as one JSON document: the report's words, tables and charts.

A number is rounded to six significant digits; NaN is null, infinity the text `Infinity`.
"""

import json
import math
from typing import Any

import numpy as np
import pandas as pd

from bora_sweep.report.figures.data import BySize, Poolings, TaskSizes, TauCurve
from bora_sweep.report.figures.legends import Entry
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
from bora_sweep.report.stats.likeness import Likeness
from bora_sweep.report.stats.method_comparison import Method
from bora_sweep.report.stats.recommendation import Recommendation
from bora_sweep.report.stats.summary import TRAIN
from bora_sweep.report.text import notes, sections
from bora_sweep.report.text.answer import (
    answer,
    best_method,
    tasks_that_gain,
    tasks_without_text,
    where_best_tau_lies,
)
from bora_sweep.report.text.captions import CaptionedFigure, captioned_figures, figures_of_other_measure
from bora_sweep.report.text.formats import Table, level_text, markdown_text, number_text, tau_text, visible
from bora_sweep.report.text.likeness_section import about_likeness, group_table, likeness_sentence
from bora_sweep.report.text.measured import chosen_by, label, plain_label, suffix
from bora_sweep.report.text.pooling import about_pooling
from bora_sweep.report.text.recommendation import recommendation
from bora_sweep.report.text.serving_cost import about_cost, cost_table
from bora_sweep.report.text.tau_section import tau_section

_DIGITS = 6
_EXACT = 2**53  # whole numbers that JavaScript holds


def make_document(
    analysis: Analysis,
    others: list[Analysis],
    made: Recommendation,
    methods: list[Method],
    compared: pd.DataFrame,
    curves: pd.DataFrame,
    origin: Table,
    alike: Likeness | None = None,
) -> dict[str, Any]:
    """The document, of plain values and arrays.

    Args:
        analysis: Of a run, or of several, by the measure that chose tau.
        others: By the other measures.
        made: `recommend(analysis)`.
        methods: `compare_methods`.
        compared: `method_frame` of them; empty where there is nothing to compare.
        curves: The table `curves`.
        origin: `provenance_table`.
        alike: Who is like whom; None where that was not asked.
    """
    summary = analysis.summary
    trials, settings = trial_columns(summary), configuration(summary)
    figures = captioned_figures(analysis)
    drawn, tau_legend = _charts(figures, analysis)
    remark = drawn["each"].pop("remark")
    drawn["learning"] = charts.learning_chart(curves, trials, summary)
    legends = {"tau": tau_legend, "learning": charts.learning_legend(drawn["learning"], tau_legend)}
    are_few = len(summary.tasks) <= MOST_NAMES
    markdown = _markdown(analysis, made, methods, compared, trials) | {
        "tau": f"*Change* is each task's {label(analysis.measure)} against its own at the best τ.{remark}",
        "settings": f"The whole configuration of trial {markdown_text(settings['trial'])}, of the best fit; keys that "
        "differ between trials are marked.",
    }
    if alike is not None:
        markdown |= {
            "alike": likeness_sentence(alike),
            "alike_about": about_likeness(alike).rpartition(" The pairs")[0],
        }
    drawn["alike"] = charts.likeness_chart(alike)
    markdown |= {f"figure_{n}": figure.caption for n, figure in enumerate(figures, start=1)}
    return {
        "runs": [visible(run.rstrip("/").rpartition("/")[2] or run) for run in dict.fromkeys(summary.trials["run"])],
        "measure": analysis.measure.title,
        "words": {name: words(text) for name, text in markdown.items()},
        "facts": _facts(analysis, trials),
        "are_few": are_few,
        "num_tasks": charts.tasks_text(len(summary.tasks)),
        "tables": {
            "tasks": tables.task_table(analysis, others, len(analysis.tested) <= MOST_NAMES).to_json(),
            "taus": tables.overall_table(analysis).to_json(),
            "methods": None if compared.empty else tables.methods_table(analysis, compared).to_json(),
            "trials": trial_table(trials).to_json(),
            "splits": tables.split_table(summary).to_json(),
            "versions": tables.version_table(settings["versions"]).to_json(),
            "cost": tables.of_words("What each way to serve costs", cost_table(analysis, made)).to_json(),
            "origin": tables.of_words("Where this comes from", origin, kind="text").to_json(),
            "groups": _group_table(alike),
        },
        "filters": tables.task_filters(analysis.task_gains),
        "charts": drawn,
        "tips": charts.tips(analysis),
        "legends": legends,
        "measures": [_other_measure(other) for other in others],
        "configuration": {name: settings[name] for name in ("trial", "lines", "differ")},
    }


def _group_table(alike: Likeness | None) -> dict[str, Any] | None:
    if alike is None or not alike.found:
        return None
    return tables.of_words("Groups of tasks", group_table(alike), kind="text").to_json()


def _charts(figures: list[CaptionedFigure], analysis: Analysis) -> tuple[dict[str, Any], list[Entry]]:
    """Figures 1 to 6, None where the results do not hold one; and the legend of Figure 2."""
    sizes, tau, gains, distance, level, pooled = (figure.data for figure in figures)
    assert isinstance(sizes, TaskSizes)
    assert isinstance(tau, TauCurve)
    assert isinstance(level, BySize)
    columns = {"best": {"value": "best", "low": "best_low", "high": "best_high"}}
    made: dict[str, Any] = {
        "sizes": charts.sizes_chart(sizes, analysis),
        "overall": charts.overall_chart(tau, analysis),
        "each": charts.each_chart(tau, analysis),
        "level": charts.size_chart(level, columns, [], analysis),
        "gains": _gain_chart(gains, analysis) if isinstance(gains, BySize) else None,
        "distance": None,
        "pooling": charts.pooling_chart(pooled, analysis) if isinstance(pooled, Poolings) else None,
    }
    if isinstance(distance, BySize):
        tip = [[f"{distance.y.title[:1].lower()}{distance.y.title[1:]}: ", {"of": "distance"}]]
        made["distance"] = charts.size_chart(distance, {"best": {"value": "distance"}}, tip, analysis)
    return made, charts.tau_legend(tau, analysis)


def _gain_chart(gains: BySize, analysis: Analysis, end: str = "", lines: list[Any] | None = None) -> charts.Chart:
    """Figure 3, of a measure whose columns in the table of tasks have `end` at the end of their names."""
    columns = {
        name: {"value": f"gain_{name}{end}", "low": f"gain_{name}_low{end}", "high": f"gain_{name}_high{end}"}
        for name in gains.series
    }
    return charts.size_chart(gains, columns, [], analysis, lines)


def _other_measure(analysis: Analysis) -> dict[str, Any]:
    """What the page shows of a measure that did not choose tau."""
    end, (tau, gains) = suffix(analysis), figures_of_other_measure(analysis)
    assert isinstance(tau.data, TauCurve)
    lines = charts.task_lines(analysis, end)
    each = charts.each_chart(tau.data, analysis)
    each["views"].pop("absolute")
    drawn = {
        "overall": charts.overall_chart(tau.data, analysis),
        "each": each | {"lines": lines},
        "gains": _gain_chart(gains.data, analysis, end, lines) if isinstance(gains.data, BySize) else None,
    }
    markdown = {
        "answer": sections.about_other_measure(analysis),
        "verdicts": tasks_that_gain(analysis),
        "table": sections.about_other_table(analysis),
        "figure_2": f"{tau.caption}\n\nOn the right, each task's change against its own at the best τ."
        f"{each.pop('remark')}",
        "figure_3": gains.caption,
    }
    return {
        "title": analysis.measure.title,
        "words": {name: words(text) for name, text in markdown.items()},
        "table": tables.overall_table(analysis).to_json(),
        "charts": drawn,
        "legend": charts.tau_legend(tau.data, analysis),
    }


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
    test, text = analysis.bootstrap.level(summary.best), level_text(analysis.measure)
    as_good = None if choice.curve is None else choice.curve.as_good
    validation = f"on validation{chosen_by(summary, plain_label)}"
    if as_good is not None:
        validation = f"as good {validation}: {tau_text(as_good.low)} to {tau_text(as_good.high)}"
    num_documents, num_tokens = float(summary.train_documents_D.sum()), float(summary.num_tokens_DL[:, TRAIN].sum())
    sizes = f"{number_text(num_documents)} training documents, {number_text(num_tokens)} tokens"
    simpler = tau_text(summary.settings[choice.one_standard_error].tau)
    interval = f"95% interval {text(test.low)} to {text(test.high)}"
    states = trials["status"]
    return [
        ("Best τ", tau_text(summary.best_tau), validation),
        ("τ by one standard error", simpler, "the largest within one standard error of the best"),
        (f"Test {plain_label(analysis.measure)}", text(test.estimate), interval),
        ("Tasks", f"{len(summary.tasks):,}", sizes),
        ("Trials finished", f"{states.count('finished'):,}", f"of {len(states):,} begun"),
        ("Training", duration_text(total(trials["train_seconds"])), "all trials added up"),
    ]


def _markdown(
    analysis: Analysis, made: Recommendation, methods: list[Method], compared: pd.DataFrame, trials: Columns
) -> dict[str, str]:
    """Markdown by its place in the page: the words of `report.md`, and what that has no place for."""
    summary = analysis.summary
    return {
        "recommendation": recommendation(analysis, made),
        "cost_to_serve": about_cost(summary, made),
        "answer": f"{answer(analysis)}\n\n{where_best_tau_lies(summary)} {best_method(summary, methods)}\n\n"
        f"{tasks_without_text(summary)}".rstrip(),
        "notes": f"{notes.warnings(summary, methods, made.served.setting)}\n\n{notes.protocol(summary)}",
        "choosing": tau_section(analysis),
        "table_1": sections.overall(analysis),
        "methods": sections.methods(analysis, compared),
        "verdicts": f"{tasks_that_gain(analysis)}\n\n{about_pooling(analysis)}".strip(),
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
