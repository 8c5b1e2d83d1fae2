"""Writes the report: `report.md`, the page `index.html`, figures and tables, in the run's folder."""

import pandas as pd

from bora_sweep.errors import InputError
from bora_sweep.report import frames
from bora_sweep.report.added import is_added, write_added_report
from bora_sweep.report.figures.draw import draw
from bora_sweep.report.figures.likeness_map import draw_likeness
from bora_sweep.report.figures.style import render
from bora_sweep.report.html import page as html
from bora_sweep.report.html.document import make_document
from bora_sweep.report.paper.markdown import write_paper
from bora_sweep.report.stats.analysis import Analysis, analyse, analyse_others
from bora_sweep.report.stats.likeness import Likeness, likeness
from bora_sweep.report.stats.many_tasks import in_print
from bora_sweep.report.stats.method_comparison import Method, compare_methods
from bora_sweep.report.stats.pool_trials import summarise
from bora_sweep.report.stats.recommendation import Recommendation, recommend
from bora_sweep.report.text import notes, sections, tables
from bora_sweep.report.text.answer import (
    answer,
    best_method,
    tasks_that_gain,
    tasks_without_text,
    where_best_tau_lies,
)
from bora_sweep.report.text.captions import CaptionedFigure, captioned_figures, figures_of_other_measure
from bora_sweep.report.text.formats import Table, latex_table, markdown_table, markdown_text
from bora_sweep.report.text.likeness_section import likeness_section
from bora_sweep.report.text.measured import suffix
from bora_sweep.report.text.pooling import about_pooling
from bora_sweep.report.text.provenance import provenance_table
from bora_sweep.report.text.recommendation import recommendation
from bora_sweep.report.text.serving_cost import serving_cost
from bora_sweep.report.text.tau_section import tau_section
from bora_sweep.runs.inputs import read_inputs
from bora_sweep.runs.results import read_results
from bora_sweep.runs.storage import Folder, folder_at, write_bytes

FEWEST_DRAWN = 3
"""Tasks from which on the map of similarities is drawn."""


def write_report(run: str | Folder | list[str | Folder], against_paper: bool = False) -> Folder:
    """Write tables, figures and a page from a run's results, also of an unfinished run.

    Args:
        run: A run's folder, or a list of them; the report goes to `report/` in the first.
        against_paper: Also write `paper.md`, which compares the run with the paper's results.

    Returns:
        The path of `RUN/report/report.md`. Beside it: `index.html`, `figures/*.{png,svg}`, `tables/*.{csv,tex}`.

    Raises:
        InputError: Not a run's folder, no fit has finished yet, or runs that did not score the same documents.
    """
    runs = list(dict.fromkeys(folder_at(path) for path in (run if isinstance(run, list) else [run])))
    results = read_results([*runs])
    if is_added(results):
        if len(runs) > 1 or against_paper:
            raise InputError(f"{runs[0]}: is a run of `add`; its report is of one run, and of new tasks alone")
        return write_added_report(runs[0])
    summary = summarise(results)
    analysis = analyse(summary)
    made, methods = recommend(analysis), compare_methods(summary)
    others = analyse_others(analysis)
    compared = frames.method_frame(analysis, methods)
    folder = runs[0] / "report"
    for by_measure in (analysis, *others):
        _write_tables(folder / "tables", by_measure)
    _write_tables_of_run(folder / "tables", analysis, compared)
    origin = provenance_table(summary, read_inputs(runs[0]) if len(runs) == 1 else None)
    alike = likeness(results, summary.settings[summary.best].trials[0][1]) if len(runs) == 1 else None
    document = make_document(analysis, others, made, methods, compared, results.curves, origin, alike)
    write_bytes(folder / "index.html", html.page(document))
    parts = [
        f"# Results of {', '.join(markdown_text(path.absolute().name) for path in runs)}",
        *_opening(analysis, made, methods),
        f"[Compared with the paper]({write_paper(folder, summary, results).name})." if against_paper else "",
        *_sections(analysis, others, compared, alike, folder / "figures"),
        f"## Where this comes from\n\n{markdown_table(origin, limit=300, right=False)}",
    ]
    page = folder / "report.md"
    write_bytes(page, "\n\n".join(part for part in parts if part).encode() + b"\n")
    return page


def _opening(analysis: Analysis, made: Recommendation, methods: list[Method]) -> list[str]:
    summary = analysis.summary
    return [
        recommendation(analysis, made),
        serving_cost(analysis, made),
        answer(analysis),
        f"{where_best_tau_lies(summary)} {best_method(summary, methods)}".rstrip(),
        tasks_that_gain(analysis),
        about_pooling(analysis),
        tasks_without_text(summary),
        notes.warnings(summary, methods, made.served.setting),
    ]


def _sections(
    analysis: Analysis, others: list[Analysis], compared: pd.DataFrame, alike: Likeness | None, folder: Folder
) -> list[str]:
    """The sections below the opening; their figures are written to `folder`."""
    summary = analysis.summary
    return [
        notes.protocol(summary),
        sections.overall(analysis),
        tau_section(analysis),
        sections.methods(analysis, compared),
        sections.by_verdict(analysis),
        sections.by_task(analysis),
        likeness_section(alike, _write_map(folder, alike)),
        "## Figures",
        *_write_figures(folder, captioned_figures(analysis), numbers=[1, 2, 3, 4, 5, 6]),
        *(
            sections.by_other_measure(other, _write_figures(folder, figures_of_other_measure(other), numbers=[2, 3]))
            for other in others
        ),
        sections.trials(summary),
        sections.measured(analysis),
    ]


def _write_map(folder: Folder, alike: Likeness | None) -> str:
    """Write the map of similarities as PNG and SVG; returns it as Markdown, empty where there is none."""
    if alike is None or alike.similarity_KK is None or len(alike.tasks) < FEWEST_DRAWN:
        return ""
    for kind, content in zip(("png", "svg"), render(draw_likeness(alike)), strict=True):
        write_bytes(folder / f"similarity.{kind}", content)
    return "![How alike each two tasks are, in the order of their tree](figures/similarity.png)"


def _write_tables(folder: Folder, analysis: Analysis) -> None:
    """The tables of one measure; those of a measure that did not choose tau have its name at their end."""
    end = suffix(analysis)
    _write_csv(folder, f"table_1{end}", frames.overall_frame(analysis))
    _write_csv(folder, f"table_a1{end}", frames.task_frame(analysis))
    _write_csv(folder, f"improvements{end}", frames.gain_frame(analysis.task_gains))
    _write_csv(folder, f"curve{end}", frames.curve_frame(analysis))
    _write_csv(folder, f"trends{end}", frames.trend_frame(analysis.trends))
    _write_latex(folder, f"table_1{end}", tables.overall_table(analysis))
    with_verdict, tasks = in_print(analysis)
    _write_latex(folder, f"table_a1{end}", tables.task_table(analysis, tasks, intervals=False))
    if analysis.task_gains:
        _write_latex(folder, f"table_2{end}", tables.verdict_table(analysis, with_verdict))


def _write_tables_of_run(folder: Folder, analysis: Analysis, compared: pd.DataFrame) -> None:
    """The tables that there are once, by the measure that chose tau."""
    _write_csv(folder, "choice", frames.choice_frame(analysis))
    if analysis.pooling is not None:
        _write_csv(folder, "pooling", frames.pooling_frame(analysis))
    _write_csv(folder, "trials", analysis.summary.trials)
    if not compared.empty:
        _write_csv(folder, "methods", compared)
        _write_latex(folder, "methods", tables.method_table(analysis, compared))


def _write_csv(folder: Folder, name: str, frame: pd.DataFrame) -> None:
    write_bytes(folder / f"{name}.csv", frame.to_csv(index=False).encode())


def _write_latex(folder: Folder, name: str, table: Table) -> None:
    write_bytes(folder / f"{name}.tex", latex_table(table).encode())


def _write_figures(folder: Folder, figures: list[CaptionedFigure], numbers: list[int]) -> list[str]:
    """Write each figure as PNG and SVG; returns them as Markdown, with their captions."""
    parts = []
    for number, shown in zip(numbers, figures, strict=True):
        if shown.data is not None:
            png, svg = render(draw(shown.data))
            write_bytes(folder / f"{shown.name}.png", png)
            write_bytes(folder / f"{shown.name}.svg", svg)
            parts.append(f"![{shown.alt}](figures/{shown.name}.png)")
        parts.append(f"**Figure {number}.** {shown.caption}")
    return parts
