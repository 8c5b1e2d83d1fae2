"""The page `report.md`, its figures and its tables, written beside the results that they are made from."""

from bora_sweep.report.figures.draw import draw
from bora_sweep.report.figures.style import render
from bora_sweep.report.html import page as html
from bora_sweep.report.html.document import make_document
from bora_sweep.report.paper.page import write_paper
from bora_sweep.report.stats.analysis import Analysis, analyse
from bora_sweep.report.stats.summary import summarise
from bora_sweep.report.text import notes, sections, tables
from bora_sweep.report.text.answer import answer, lowest, place, verdicts
from bora_sweep.report.text.captions import illustrate
from bora_sweep.report.text.formats import Table, latex_table, markdown_text
from bora_sweep.report.text.methods import compare_methods, method_numbers, method_table
from bora_sweep.report.text.tau_section import choice_numbers, choosing
from bora_sweep.runs.results import read_results
from bora_sweep.runs.storage import Folder, folder_at, write_bytes


def write_report(run: str | Folder | list[str | Folder], against_paper: bool = False) -> Folder:
    """Tables, figures and a page from a run's results, also of an unfinished run.

    Args:
        run: A run's folder, or a list of them; the report goes to `report/` in the first.
        against_paper: Also write `paper.md`, the run beside the paper's results.

    Returns:
        The page, `RUN/report/report.md`. Beside it: `index.html`, `figures/*.{png,svg}`, `tables/*.{csv,tex}`.

    Raises:
        InputError: Not a run's folder, no fit has finished yet, or runs that did not score the same documents.
    """
    runs = list(dict.fromkeys(folder_at(path) for path in (run if isinstance(run, list) else [run])))
    results = read_results([*runs])
    summary = summarise(results)
    analysis = analyse(summary)
    methods = compare_methods(summary)
    compared = method_numbers(summary, analysis.bootstrap, methods)
    folder = runs[0] / "report"
    _write_tables(folder / "tables", analysis)
    if not compared.empty:
        _write_table(folder / "tables", "methods", method_table(summary, compared))
        write_bytes(folder / "tables" / "methods.csv", compared.to_csv(index=False).encode())
    parts = [
        f"# Results of {', '.join(markdown_text(path.absolute().name) for path in runs)}",
        answer(analysis),
        " ".join([place(summary), *lowest(summary, methods)]),
        verdicts(analysis),
        notes.warnings(summary, methods),
        f"[Beside the paper's results]({write_paper(folder, summary, results).name})." if against_paper else "",
        notes.protocol(summary),
        sections.overall(analysis),
        choosing(analysis),
        sections.methods(summary, compared),
        sections.by_verdict(analysis),
        sections.by_task(analysis),
        "## Figures",
        *_figures(folder / "figures", analysis),
        sections.trials(summary),
        sections.measured(analysis),
    ]
    document = make_document(analysis, methods, compared, results.curves)
    write_bytes(folder / "index.html", html.page(document))
    page = folder / "report.md"
    write_bytes(page, "\n\n".join(part for part in parts if part).encode() + b"\n")
    return page


def _write_tables(folder: Folder, analysis: Analysis) -> None:
    numbers = {
        "table_1": tables.overall_numbers(analysis),
        "table_a1": tables.task_numbers(analysis),
        "improvements": tables.gain_numbers(analysis.task_gains),
        "choice": choice_numbers(analysis),
        "curve": tables.curve_numbers(analysis),
        "trends": tables.trend_numbers(analysis.trends),
        "trials": analysis.summary.trials,
    }
    for name, frame in numbers.items():
        write_bytes(folder / f"{name}.csv", frame.to_csv(index=False).encode())
    _write_table(folder, "table_1", tables.overall_table(analysis))
    _write_table(folder, "table_a1", tables.task_table(analysis, intervals=False))
    if analysis.task_gains:
        _write_table(folder, "table_2", tables.verdict_table(analysis))


def _write_table(folder: Folder, name: str, table: Table) -> None:
    write_bytes(folder / f"{name}.tex", latex_table(table).encode())


def _figures(folder: Folder, analysis: Analysis) -> list[str]:
    parts = []
    for number, shown in enumerate(illustrate(analysis), start=1):
        if shown.data is not None:
            png, svg = render(draw(shown.data))
            write_bytes(folder / f"{shown.name}.png", png)
            write_bytes(folder / f"{shown.name}.svg", svg)
            parts.append(f"![{shown.alt}](figures/{shown.name}.png)")
        parts.append(f"**Figure {number}.** {shown.caption}")
    return parts
