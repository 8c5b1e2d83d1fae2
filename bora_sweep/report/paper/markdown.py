"""`paper.md`: a run compared with the paper, in words, tables and a figure."""

import math
from typing import Any

import pandas as pd

from bora_sweep.errors import plural
from bora_sweep.report.figures.style import render
from bora_sweep.report.paper.compare import PaperComparison, compare_with_paper, overall_frame, task_frame
from bora_sweep.report.paper.settings import settings_that_differ
from bora_sweep.report.paper.tau_figure import draw
from bora_sweep.report.stats.rank_correlation import EXACT_PAIRS, RankCorrelation
from bora_sweep.report.stats.summary import Summary
from bora_sweep.report.text.formats import (
    Table,
    change_text,
    latex_table,
    markdown_table,
    markdown_text,
    perplexity_text,
    tau_text,
)
from bora_sweep.runs.results import Results
from bora_sweep.runs.storage import Folder, write_bytes

FIGURE = "paper_tau"


def write_paper(report: Folder, summary: Summary, results: Results) -> Folder:
    """Write `paper.md` in a report's folder, with `figures/paper_tau.*` and `tables/paper_*`; returns its path."""
    comparison = compare_with_paper(summary, results)
    frames = {"paper_table_1": overall_frame(comparison), "paper_table_a1": task_frame(comparison)}
    tables = {"paper_table_1": overall_table(frames["paper_table_1"])}
    if comparison.task_pairs and comparison.taus:
        tables["paper_table_a1"] = task_table(comparison, frames["paper_table_a1"])
    for name, frame in frames.items():
        write_bytes(report / "tables" / f"{name}.csv", frame.to_csv(index=False).encode())
    for name, table in tables.items():
        write_bytes(report / "tables" / f"{name}.tex", latex_table(table).encode())
    for kind, content in zip(("png", "svg"), render(draw(comparison)), strict=True):
        write_bytes(report / "figures" / f"{FIGURE}.{kind}", content)
    parts = [
        "# Compared with the paper",
        _answer(comparison),
        markdown_table(tables["paper_table_1"]),
        _about_table_1(comparison),
        _figure_text(comparison),
        _tasks_text(comparison, tables.get("paper_table_a1")),
        _settings_text(summary),
        _source_text(comparison),
    ]
    page = report / "paper.md"
    write_bytes(page, "\n\n".join(part for part in parts if part).encode() + b"\n")
    return page


def overall_table(frame: pd.DataFrame) -> Table:
    """Table 1 of both; bold is the lowest of each."""
    table = Table(["τ", "Rate, paper", "Rate, ours", "Paper", "Ours", "Ours / paper", "Paper, above", "Ours, above"])
    for i, row in enumerate(frame.to_dict("records")):
        rates = [_rate(row[f"{name}_learning_rate"]) for name in ("paper", "ours")]
        values = [perplexity_text(row["paper"]), perplexity_text(row["ours"]), _ratio(row["ratio"])]
        above = [_above(row[f"{name}_above_lowest"]) for name in ("paper", "ours")]
        table.rows.append([tau_text(row["tau"]), *rates, *values, *above])
        table.bold |= {(i, 3 + j) for j, name in enumerate(("paper", "ours")) if row[f"{name}_above_lowest"] == 0}
    return table


def task_table(comparison: PaperComparison, frame: pd.DataFrame) -> Table:
    """Table A.1: in each cell the paper's, ours, and the ratio; bold where ours is lowest."""
    table = Table(["Task", *(f"τ = {tau_text(tau)}" for tau in comparison.taus)])
    for i, (task, rows) in enumerate(frame.groupby("task", sort=False)):
        cells = zip(rows["paper"], rows["ours"], rows["ratio"], strict=True)
        table.rows.append(
            [str(task), *(f"{perplexity_text(a)} · {perplexity_text(b)} · {_ratio(c)}" for a, b, c in cells)]
        )
        table.bold.add((i, 1 + int(rows["ours"].to_numpy().argmin())))
    return table


def _rate(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}"


def _ratio(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:#.3g}"


def _above(value: float) -> str:
    return "–" if math.isnan(value) else "lowest" if value == 0 else change_text(value)


def _answer(comparison: PaperComparison) -> str:
    """Where each is lowest, and how alike they rank, in one paragraph."""
    if not comparison.taus:
        wanted = ",".join(f"{tau:g}" for tau in comparison.paper.taus)
        return (
            "**This run fitted none of the paper's values of τ, so no two numbers can be compared.** "
            f"Fit them too: search.taus=\\[{wanted}\\]."
        )
    lowest = []
    for curves, where in ((comparison.paper, "in the paper"), (comparison.ours, "here")):
        value, tau = min(zip(curves.overall_V[curves.indices(comparison.taus)], comparison.taus, strict=True))
        lowest.append(f"{where} at τ = {tau_text(tau)} ({perplexity_text(value)})")
    return (
        f"**The paper and this run have {plural(len(comparison.taus), 'value')} of τ in common. Of these, perplexity "
        f"is lowest {' and '.join(lowest)}.** {_tau_correlation_text(comparison)} {_common_tasks_text(comparison)}"
    )


def _tau_correlation_text(comparison: PaperComparison) -> str:
    correlation = comparison.tau_correlation
    if math.isnan(correlation.rho):
        return "These are too few values for a rank correlation."
    return f"Over these values, the perplexities of both have {_correlation_text(correlation)}."


def _common_tasks_text(comparison: PaperComparison) -> str:
    num_tasks, num_common = len(comparison.ours.tasks), len(comparison.task_pairs)
    if num_common == 0:
        return (
            f"None of this run's {plural(num_tasks, 'task')} has the name of one of the paper's (Table A.1). So levels "
            "cannot be compared, but the shape over τ can."
        )
    others = "" if num_common == num_tasks else " The numbers over all tasks include the others."
    correlation = ""
    if 100 in comparison.taus:
        correlation = (
            f" At τ = 100, the perplexities of these tasks have {_correlation_text(comparison.task_correlation(100))}."
        )
    return (
        f"{num_common} of the {plural(num_tasks, 'task')} are among the paper's {len(comparison.paper.tasks)} by name."
        f"{others}{correlation}"
    )


def _correlation_text(correlation: RankCorrelation) -> str:
    if math.isnan(correlation.rho):
        return f"no rank correlation (n = {correlation.n} is too few)"
    interval = "" if math.isnan(correlation.low) else f" [{correlation.low:.2f}, {correlation.high:.2f}]"
    p = "p < 0.001" if correlation.p < 0.001 else f"p = {correlation.p:.2g}"
    return f"Spearman's ρ = {correlation.rho:.2f}{interval} ({p}, n = {correlation.n})".replace("-", "−")


def _about_table_1(comparison: PaperComparison) -> str:
    return (
        "Bold: the lowest of each. *Above*: how far a value lies above the lowest of its column, of the τ that both "
        "have. This compares the two curves even where their levels differ. "
        f"Ours: {markdown_text(comparison.our_measure, 400)}. The paper has no τ = ∞; it takes τ = 10,000 for that "
        "limit. [As numbers](tables/paper_table_1.csv), [LaTeX](tables/paper_table_1.tex)."
    )


def _figure_text(comparison: PaperComparison) -> str:
    lowest = ""
    if comparison.taus:
        counts = [
            f"{where} {', '.join(f'{n} at τ = {tau_text(tau)}' for tau, n in lowest_at.items() if n)}"
            for lowest_at, where in (
                (comparison.paper.tasks_lowest_at(comparison.taus), "of the paper's"),
                (comparison.ours.tasks_lowest_at(comparison.taus), "of ours"),
            )
        ]
        lowest = f" Number of tasks that are lowest at each τ that both have: {'; '.join(counts)}."
    alt = (
        "Line plots over the precision τ of the paper's and this run's perplexity, as they are and above their lowest."
    )
    return (
        f"![{alt}](figures/{FIGURE}.png)\n\n"
        "**Figure 2 of the paper, with this run.** Thick lines: all tasks together; thin lines: each task. Orange: the "
        f"paper; black: this run. Beyond the breaks of the axis: τ = 0 and τ = ∞.{lowest}"
    )


def _tasks_text(comparison: PaperComparison, table: Table | None) -> str:
    if table is None:
        return ""
    correlations = Table(["τ", "Tasks, the paper's against ours"])
    correlations.rows = [
        [tau_text(tau), _correlation_text(comparison.task_correlation(tau))] for tau in comparison.taus
    ]
    return "\n\n".join(
        [
            "## Table A.1",
            markdown_table(table),
            "Each cell has the paper's perplexity · ours · ours divided by the paper's. Bold: the lowest of ours. "
            "[As numbers](tables/paper_table_a1.csv), [LaTeX](tables/paper_table_a1.tex).",
            "Are the same tasks hard in both?",
            markdown_table(correlations, limit=160),
            "Brackets hold 95% intervals over tasks by Bonett and Wright (2000). The p-value counts every order of up "
            f"to {EXACT_PAIRS} tasks, and is by Student's t beyond.",
        ]
    )


def _settings_text(summary: Summary) -> str:
    table = Table(["Setting", "The paper's numbers", "This run"])
    table.rows = [[key, _value_text(paper), _value_text(ours)] for key, paper, ours in settings_that_differ(summary)]
    return f"## Settings that differ\n\n{markdown_table(table) if table.rows else 'None of those compared.'}"


def _value_text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _source_text(comparison: PaperComparison) -> str:
    return (
        "## Where the paper's numbers come from\n\n"
        "They are Tables 1 and A.1 of Eide and Frigessi (2025), as the published code made them. That code differs "
        "from the paper's text: a task's number is the perplexity of its best epoch on validation, not test "
        "perplexity; padding is scored; and the penalty is the distance of each matrix, not its square. "
        "`protocol=published_code` fits and reports as that code does. docs/reproduction.md says how each of these "
        f"changes the numbers.\n\n{_disagreement_text(comparison)}"
    )


def _disagreement_text(comparison: PaperComparison) -> str:
    """The values of tau at which the paper's Table 1 is not the mean of its Table A.1."""
    means_V, overall_V = comparison.paper.perplexity_DV.mean(axis=0), comparison.paper.overall_V
    apart_V = abs(means_V / overall_V - 1)
    odd = [v for v, apart in enumerate(apart_V) if apart > 0.02]
    others = max(apart for v, apart in enumerate(apart_V) if v not in odd)
    return " ".join(
        f"At τ = {tau_text(comparison.paper.taus[v])} the two tables do not agree: {perplexity_text(overall_V[v])} in "
        f"Table 1, and {perplexity_text(means_V[v])} on average over the tasks of Table A.1. At all other values the "
        f"two are within {100 * others:.1f}% of each other."
        for v in odd
    )
