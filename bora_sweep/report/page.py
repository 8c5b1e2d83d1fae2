"""The page `report.md`, its figures and its tables, written beside the results that they are made from."""

import math

import pandas as pd

from bora_sweep.report import html, notes, tables
from bora_sweep.report.analysis import Analysis, analyse
from bora_sweep.report.captions import illustrate
from bora_sweep.report.document import make_document
from bora_sweep.report.figures import render
from bora_sweep.report.formats import (
    latex_table,
    markdown_table,
    markdown_text,
    percent_text,
    perplexity_text,
    shorten,
    tau_text,
)
from bora_sweep.report.gains import Gain, overall_gains
from bora_sweep.report.methods import Method, compare_methods, method_numbers, method_table
from bora_sweep.report.pooling import Summary, summarise
from bora_sweep.report.statistics import REPLICATES, Bootstrap
from bora_sweep.results import read_results
from bora_sweep.storage import Folder, folder_at, write_bytes

MOST_ROWS = 41


def write_report(run: str | Folder | list[str | Folder]) -> Folder:
    """Tables, figures and a page from a run's results, also of an unfinished run.

    Args:
        run: A run's folder, or a list of them; the report goes to `report/` in the first.

    Returns:
        The page, `RUN/report/report.md`. Beside it: `figures/*.{png,svg}`, `tables/*.{csv,tex}`.

    Raises:
        InputError: Not a run's folder, no fit has finished yet, or runs that did not score the same documents.
    """
    runs = list(dict.fromkeys(folder_at(path) for path in (run if isinstance(run, list) else [run])))
    results = read_results([*runs])
    summary = summarise(results)
    analysis = analyse(summary)
    bootstrap, gains = analysis.bootstrap, analysis.task_gains
    methods = compare_methods(summary)
    compared = method_numbers(summary, bootstrap, methods)
    place = runs[0] / "report"
    _write_tables(place / "tables", summary, bootstrap, gains, compared)
    parts = [
        f"# Results of {', '.join(markdown_text(path.absolute().name) for path in runs)}",
        _answer(summary, bootstrap),
        " ".join([_place(summary), *_lowest(summary, methods)]),
        notes.tau_precision(summary, analysis.choice),
        notes.warnings(summary, methods),
        _overall(summary, bootstrap),
        _methods(summary, compared),
        _by_task(summary),
        "## Figures",
        *_figures(place / "figures", summary, bootstrap, gains),
        _trials(summary),
        _method(summary),
    ]
    said = _said(analysis, methods, compared)
    write_bytes(place / "index.html", html.page(make_document(analysis, compared, results.curves, said)))
    page = place / "report.md"
    write_bytes(page, "\n\n".join(part for part in parts if part).encode() + b"\n")
    return page


def _write_tables(
    folder: Folder, summary: Summary, bootstrap: Bootstrap, gains: list[Gain], compared: pd.DataFrame
) -> None:
    numbers = {
        "table_1": tables.overall_numbers(summary, bootstrap),
        "table_a1": tables.task_numbers(summary),
        "improvements": tables.gain_numbers(gains),
        "trials": summary.trials,
    }
    texts = {"table_1": tables.overall_table(summary, bootstrap), "table_a1": tables.task_table(summary)}
    if not compared.empty:
        numbers["methods"], texts["methods"] = compared, method_table(summary, compared)
    for name, frame in numbers.items():
        write_bytes(folder / f"{name}.csv", frame.to_csv(index=False).encode())
    for name, table in texts.items():
        write_bytes(folder / f"{name}.tex", latex_table(table).encode())


def _answer(summary: Summary, bootstrap: Bootstrap) -> str:
    perplexity = perplexity_text(summary.settings[summary.best].test_perplexity)
    gains = overall_gains(summary, bootstrap)
    said = []
    for gain in gains:
        size, side = (gain.interval, "below") if gain.interval.estimate >= 0 else (-gain.interval, "above")
        said.append(f"{percent_text(size, signed=False)} {side} {gain.reference_in_words}")
    sentence = f"τ = {tau_text(summary.best_tau)} gives test perplexity {perplexity}{': ' if said else ''}"
    lines = [f"**{sentence}{', '.join(said)}.**"]
    if gains:
        lines.append("Brackets hold 95% paired-bootstrap intervals.")
    for gain in gains:
        sure = "excludes 0" if gain.interval.excludes_zero else "includes 0: these documents do not tell the two apart"
        lines.append(f"The interval against {gain.reference_in_words} {sure}.")
    return " ".join(lines)


def _place(summary: Summary) -> str:
    """Where the best tau lies among those fitted, and how it was chosen."""
    taus = [summary.settings[m].tau for m in summary.fits]
    chosen = "τ was chosen by perplexity on the validation documents; the test documents are only reported."
    if len(taus) == 1:
        return f"{chosen} It is the only value fitted."
    at = taus.index(summary.best_tau)
    if 0 < at < len(taus) - 1:
        neighbours = f"{tau_text(taus[at - 1])} and {tau_text(taus[at + 1])}"
        return f"{chosen} The best value is interior; its fitted neighbours are {neighbours}."
    meaning = {0.0: ": no sharing between tasks", math.inf: ": one model for all tasks"}.get(summary.best_tau, "")
    return f"{chosen} The best value is at an end of those fitted (τ = {tau_text(summary.best_tau)}{meaning})."


def _lowest(summary: Summary, methods: list[Method]) -> list[str]:
    """The method that validation would choose, where several were compared."""
    ordered = sorted(methods, key=lambda method: summary.settings[method.setting].objective)
    return [f"Of all methods compared, {markdown_text(m.name)} is best on validation." for m in ordered[:1]]


def _overall(summary: Summary, bootstrap: Bootstrap) -> str:
    return "\n\n".join(
        [
            "## Table 1. Perplexity for each τ",
            markdown_table(tables.overall_table(summary, bootstrap)),
            "Bold: lowest validation perplexity. *Test* pools all tokens of all tasks; *macro* is the mean of the "
            "tasks' perplexities. *Test vs best*: how far the row's test perplexity is above (+) the best row's, with "
            "its 95% paired-bootstrap interval. [As numbers](tables/table_1.csv), [LaTeX](tables/table_1.tex).",
        ]
    )


def _methods(summary: Summary, compared: pd.DataFrame) -> str:
    if compared.empty:
        return ""
    table = method_table(summary, compared)
    return "\n\n".join(
        [
            "## Methods compared",
            markdown_table(table, limit=160),
            "In order of test perplexity, which chose nothing: of each method, the fit with the lowest validation "
            f"perplexity is shown, and bold is the lowest of all. *{table.columns[4]}*: how far the row's test "
            "perplexity is above (+) that of this fit. Brackets hold 95% bootstrap intervals, those of "
            "differences paired. *Tokens* and *seconds* are those of training: of the fit, all its seeds, and every "
            "fit that it started from or was made of, each counted once; *of the search*, of all finished fits that "
            "validation chose the row from. Seconds depend on the machine and on what else it did. "
            "[As numbers](tables/methods.csv), [LaTeX](tables/methods.tex).",
        ]
    )


def _by_task(summary: Summary) -> str:
    table = tables.task_table(summary)
    hidden = len(summary.fits) - len(tables.shown_fits(summary))
    cut = [f"{hidden} values of τ"] if hidden else []
    cut += [f"{len(table.rows) - MOST_ROWS + 1:,} tasks"] if len(table.rows) > MOST_ROWS else []
    left = f"The CSV has {' and '.join(cut)} more. " if cut else ""
    return "\n\n".join(
        [
            "## Table A.1. Test perplexity of each task",
            markdown_table(shorten(table, MOST_ROWS)),
            f"Bold: the row's lowest over the τ shown; found on test, it describes and does not select. {left}"
            "[As numbers](tables/table_a1.csv), [LaTeX](tables/table_a1.tex).",
        ]
    )


def _figures(folder: Folder, summary: Summary, bootstrap: Bootstrap, gains: list[Gain]) -> list[str]:
    parts = []
    for number, shown in enumerate(illustrate(summary, bootstrap, gains), start=1):
        if shown.figure is not None:
            png, svg = render(shown.figure)
            write_bytes(folder / f"{shown.name}.png", png)
            write_bytes(folder / f"{shown.name}.svg", svg)
            parts.append(f"![{shown.alt}](figures/{shown.name}.png)")
        parts.append(f"**Figure {number}.** {shown.caption}")
    return parts


def _trials(summary: Summary) -> str:
    table = shorten(tables.trial_table(summary), MOST_ROWS)
    return f"## Trials\n\n{markdown_table(table, limit=160)}\n\nEvery column: [trials.csv](tables/trials.csv)."


def _method(summary: Summary) -> str:
    tasks = len(summary.tasks)
    return "\n\n".join(
        [
            "## How it was measured",
            "Perplexity is exp(sum of nats / number of tokens): the negative log-likelihood of every scored token, "
            "summed over documents and seeds and divided once. Every token of a document after its start symbol is "
            "scored once, its end token included; padding never is. Each epoch and τ is chosen on validation.",
            markdown_table(tables.split_table(summary)),
            f"Intervals come from a paired bootstrap: within each of {tasks:,} tasks its test documents are drawn "
            f"with replacement, the same draw for every τ, {REPLICATES:,} times from a fixed seed; the interval runs "
            "from the 2.5th to the 97.5th percentile. Seeds of one τ are pooled first. The intervals say how sure the "
            "result is for other documents of these same tasks, given these fits; they do not cover another training "
            "run, another split or other tasks. The interval of a single task with few test documents is too narrow.",
            "*Floor* is the perplexity of the source that wrote the text, known for the embedded corpus alone: no "
            "model is expected to do better."
            if not math.isnan(summary.floor)
            else "",
        ]
    ).rstrip()


def _said(analysis: Analysis, methods: list[Method], compared: pd.DataFrame) -> dict[str, str]:
    """What `index.html` takes from this page, by its place there."""
    summary, bootstrap = analysis.summary, analysis.bootstrap
    shown = illustrate(summary, bootstrap, analysis.task_gains)
    return {
        "answer": f"{_answer(summary, bootstrap)}\n\n{' '.join([_place(summary), *_lowest(summary, methods)])}",
        "notes": notes.warnings(summary, methods),
        "precision": notes.tau_precision(summary, analysis.choice),
        "table_1": _overall(summary, bootstrap),
        "methods": _methods(summary, compared),
        "measured": _method(summary),
    } | {f"figure_{number}": figure.caption for number, figure in enumerate(shown, start=1)}
