"""What the HTML page shows, as one JSON document: the report's numbers by column, and its words.

A number is rounded to six significant digits; NaN is null, infinity the text `Infinity`.
"""

import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from markdown_it import MarkdownIt

from bora_sweep.report.html import columns
from bora_sweep.report.html.columns import Columns
from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.method_comparison import Method
from bora_sweep.report.stats.summary import TRAIN
from bora_sweep.report.text import notes, sections
from bora_sweep.report.text.answer import answer, best_method, tasks_that_gain, where_best_tau_lies
from bora_sweep.report.text.captions import captioned_figures
from bora_sweep.report.text.formats import markdown_text, number_text, perplexity_text, tau_text
from bora_sweep.report.text.tau_section import tau_section

_DIGITS = 6
_MARKDOWN = MarkdownIt("commonmark").enable("table")

Words = list[
    list[tuple[str, str]]
]  # paragraphs of (style, text); a style is "", strong, em, sup or the address of a table


def make_document(analysis: Analysis, methods: list[Method], compared: pd.DataFrame, curves: pd.DataFrame) -> Columns:
    """The document.

    Args:
        analysis: Of a run, or of several.
        methods: `compare_methods`.
        compared: `method_frame` of them; empty where there is nothing to compare.
        curves: The table `curves`.
    """
    summary, choice = analysis.summary, analysis.choice
    trials = columns.trial_columns(summary)
    roles = {"independent": summary.independent, "shared": summary.shared, "best": summary.best}
    as_good = None if choice.curve is None else choice.curve.as_good
    return {
        "runs": [run.rstrip("/").rpartition("/")[2] or run for run in dict.fromkeys(summary.trials["run"])],
        "words": {name: words(text) for name, text in _said(analysis, methods, compared, trials).items()},
        "facts": _facts(analysis, trials),
        "best_tau": summary.best_tau,
        "one_standard_error_tau": summary.settings[choice.one_standard_error].tau,
        "as_good": None if as_good is None else [as_good.low, as_good.high],
        "zero_shot": math.nan if summary.zero_shot is None else summary.settings[summary.zero_shot].test_perplexity,
        "floor": summary.floor,
        "role_trials": {role: [] if m is None else summary.settings[m].trials for role, m in roles.items()},
        "taus": columns.tau_columns(analysis),
        "smooth": columns.smooth_columns(analysis.curve),
        "tasks": columns.task_columns(analysis),
        "gains": columns.gain_columns(analysis.task_gains),
        "trends": columns.trend_columns(analysis.trends),
        "methods": None if compared.empty else columns.by_column(compared),
        "splits": columns.split_columns(summary),
        "trials": trials,
        "curves": columns.learning_curves(curves, trials),
        "configuration": columns.configuration(summary),
    }


def to_json(document: Columns) -> str:
    """ASCII without <, > and &: within a `script` element nothing in it can end the element or begin a comment."""
    text = json.dumps(_plain(document), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&"})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(part) for part in value]
    if isinstance(value, (float, np.floating)):
        return _rounded(float(value))
    return value.item() if isinstance(value, np.generic) else value


def _rounded(value: float) -> float | int | str | None:
    if math.isnan(value):
        return None
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    rounded = float(f"{value:.{_DIGITS}g}") if abs(value) < 10**_DIGITS else float(round(value))
    return int(rounded) if rounded == int(rounded) else rounded


def words(markdown: str) -> Words:
    """Paragraphs of the report as a reader sees them, without headings and tables."""
    paragraphs, inside = [], ""
    for token in _MARKDOWN.parse(markdown):
        if token.type in ("table_open", "heading_open"):
            inside = token.type.replace("open", "close")
        elif token.type == inside:
            inside = ""
        elif token.type == "inline" and not inside:
            paragraphs.append(_runs(token.children or []))
    return paragraphs


def _runs(children: Iterable[Any]) -> list[tuple[str, str]]:
    """Runs of text, each with its style."""
    runs: list[tuple[str, str]] = []
    style = ""
    for child in children:
        if child.type in ("strong_open", "em_open"):
            style = child.type.removesuffix("_open")
        elif child.type == "html_inline":
            style = "sup" if child.content == "<sup>" else ""
        elif child.type == "link_open":
            style = child.attrs["href"]
        elif child.type.endswith("_close"):
            style = ""
        elif text := " " if child.type == "softbreak" else child.content:
            before = runs.pop()[1] if runs and runs[-1][0] == style else ""
            runs.append((style, before + text))
    return runs


def _facts(analysis: Analysis, trials: Columns) -> list[tuple[str, str, str]]:
    """Name, value and a remark, for the row below the answer."""
    summary, choice = analysis.summary, analysis.choice
    test = analysis.bootstrap.perplexity(summary.best)
    simpler = tau_text(summary.settings[choice.one_standard_error].tau)
    as_good = None if choice.curve is None else choice.curve.as_good
    num_documents, num_tokens = float(summary.train_documents_D.sum()), float(summary.num_tokens_DL[:, TRAIN].sum())
    states = trials["status"]
    return [
        (
            "Best τ",
            tau_text(summary.best_tau),
            "on validation"
            if as_good is None
            else f"as good on validation: {tau_text(as_good.low)} to {tau_text(as_good.high)}",
        ),
        ("τ by one standard error", simpler, "the most shared within the best one’s error"),
        (
            "Test perplexity",
            perplexity_text(test.estimate),
            f"95% interval {perplexity_text(test.low)} to {perplexity_text(test.high)}",
        ),
        (
            "Tasks",
            f"{len(summary.tasks):,}",
            f"{number_text(num_documents)} training documents, {number_text(num_tokens)} tokens",
        ),
        ("Trials finished", f"{states.count('finished'):,}", f"of {len(states):,} begun"),
        ("Training", _duration(trials["train_seconds"]), "all trials added up"),
    ]


def _said(analysis: Analysis, methods: list[Method], compared: pd.DataFrame, trials: Columns) -> dict[str, str]:
    """Markdown by its place in the page: the words of `report.md`, and what that has no place for."""
    summary = analysis.summary
    shown, fits = len(columns.task_columns(analysis)["taus"]), len(summary.fits)
    fewer = f" Tasks are drawn at {shown} of {fits} values of τ." if shown < fits else ""
    captions = {f"figure_{n}": figure.caption for n, figure in enumerate(captioned_figures(analysis), start=1)}
    return captions | {
        "answer": f"{answer(analysis)}\n\n{where_best_tau_lies(summary)} {best_method(summary, methods)}".rstrip(),
        "notes": f"{notes.warnings(summary, methods)}\n\n{notes.protocol(summary)}",
        "tau": f"*Change* is each task's perplexity against its own at the best τ.{fewer}",
        "choosing": tau_section(analysis),
        "table_1": sections.overall(analysis),
        "methods": sections.methods(summary, compared),
        "verdicts": tasks_that_gain(analysis),
        "tasks": f"{sections.about_verdicts(analysis) if analysis.task_gains else ''} "
        "[Each τ](tables/table_a1.csv), [gains](tables/improvements.csv).",
        "learning": "Perplexity on validation after each epoch, 0 being the model before training; dotted, on the "
        "training split over the epoch, while the adapters moved. Of long curves evenly spaced epochs are shown, the "
        "first, the best and the last among them.",
        "cost": _cost(trials),
        "trials": "*Seconds* are of training alone. CPU and GPU time is those seconds times what the trial reserved "
        "(ray.cpus_per_trial, ray.gpus_per_trial, ray.workers_per_trial). "
        "Every column: [trials.csv](tables/trials.csv).",
        "settings": f"The whole configuration of trial {markdown_text(columns.configuration(summary)['trial'])}, of "
        "the best fit; keys that differ between trials are marked.",
        "measured": sections.measured(analysis),
    }


def _cost(trials: Columns) -> str:
    states = trials["status"]
    counts = markdown_text(", ".join(f"{states.count(state):,} {state}" for state in sorted(set(states))), 200)
    held = [f"{np.nansum(trials[f'{kind}_hours']):,.3g} {kind.upper()}-hours" for kind in ("gpu", "cpu")]
    held = [text for text in held if not text.startswith("0 ")]
    tokens = sum(value for value in trials["train_tokens"] if value is not None)
    return (
        f"{len(states):,} trials ({counts}): {tokens:,.0f} tokens trained on, {_duration(trials['train_seconds'])}"
        f"{', ' if held else ''}{' and '.join(held)}."
    )


def _duration(seconds: list[float | None]) -> str:
    total = sum(value for value in seconds if value is not None)
    return f"{total:,.0f} s" if total < 120 else f"{total / 60:,.0f} min" if total < 7200 else f"{total / 3600:,.1f} h"
