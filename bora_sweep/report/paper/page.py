"""`paper.md`: a run beside the paper, in words, tables and a figure."""

import math
from typing import Any

import pandas as pd

from bora_sweep.report.figures.style import render
from bora_sweep.report.paper.compare import EXACT, Beside, Rank, beside_paper, settings_that_differ
from bora_sweep.report.paper.figure import draw
from bora_sweep.report.stats.summary import Summary
from bora_sweep.report.text.formats import Table, latex_table, markdown_table, markdown_text, perplexity_text, tau_text
from bora_sweep.runs.results import Results
from bora_sweep.runs.storage import Folder, write_bytes

FIGURE = "paper_tau"


def write_paper(place: Folder, summary: Summary, results: Results) -> Folder:
    """`paper.md` in a report's folder, with `figures/paper_tau.*` and `tables/paper_*`."""
    beside = beside_paper(summary, results)
    numbers = {"paper_table_1": overall_numbers(beside), "paper_table_a1": task_numbers(beside)}
    texts = {"paper_table_1": overall_table(numbers["paper_table_1"])}
    if beside.pairs and beside.taus:
        texts["paper_table_a1"] = task_table(beside, numbers["paper_table_a1"])
    for name, frame in numbers.items():
        write_bytes(place / "tables" / f"{name}.csv", frame.to_csv(index=False).encode())
    for name, table in texts.items():
        write_bytes(place / "tables" / f"{name}.tex", latex_table(table).encode())
    for kind, content in zip(("png", "svg"), render(draw(beside)), strict=True):
        write_bytes(place / "figures" / f"{FIGURE}.{kind}", content)
    parts = [
        "# Beside the paper",
        _answer(beside),
        markdown_table(texts["paper_table_1"]),
        _about_table_1(beside),
        _figure_text(beside),
        _tasks_text(beside, texts.get("paper_table_a1")),
        _settings_text(summary),
        _origin(beside),
    ]
    page = place / "paper.md"
    write_bytes(page, "\n\n".join(part for part in parts if part).encode() + b"\n")
    return page


def overall_numbers(beside: Beside) -> pd.DataFrame:
    """Table 1: a row for each tau of either, with how far each value lies above its own lowest of those in both."""
    columns = {}
    for name, curves in (("paper", beside.paper), ("ours", beside.ours)):
        above_V = curves.over_lowest(beside.taus)[0] if beside.taus else [math.nan] * len(curves.taus)
        columns[f"{name}_learning_rate"] = pd.Series(curves.learning_rates, curves.taus)
        columns[name] = pd.Series(curves.overall_V, curves.taus)
        columns[f"{name}_above_lowest"] = pd.Series(above_V, curves.taus)
    frame = pd.DataFrame(columns).sort_index()
    frame.insert(0, "tau", frame.index)
    return frame.assign(ratio=frame["ours"] / frame["paper"]).reset_index(drop=True)


def task_numbers(beside: Beside) -> pd.DataFrame:
    """Table A.1: a row for each task and tau that both have."""
    rows = [
        (beside.ours.tasks[ours], tau, beside.paper.perplexity_DV[paper, v], beside.ours.perplexity_DV[ours, w])
        for paper, ours in beside.pairs
        for tau, v, w in zip(beside.taus, beside.paper.at(beside.taus), beside.ours.at(beside.taus), strict=True)
    ]
    frame = pd.DataFrame(rows, columns=["task", "tau", "paper", "ours"])
    return frame.assign(ratio=frame["ours"] / frame["paper"])


def overall_table(numbers: pd.DataFrame) -> Table:
    """Table 1 beside ours; bold is the lowest of each."""
    table = Table(["τ", "Rate, paper", "Rate, ours", "Paper", "Ours", "Ours / paper", "Paper, above", "Ours, above"])
    for i, row in enumerate(numbers.to_dict("records")):
        rates = [_rate(row[f"{name}_learning_rate"]) for name in ("paper", "ours")]
        values = [perplexity_text(row["paper"]), perplexity_text(row["ours"]), _ratio(row["ratio"])]
        above = [_above(row[f"{name}_above_lowest"]) for name in ("paper", "ours")]
        table.rows.append([tau_text(row["tau"]), *rates, *values, *above])
        table.bold |= {(i, 3 + j) for j, name in enumerate(("paper", "ours")) if row[f"{name}_above_lowest"] == 0}
    return table


def task_table(beside: Beside, numbers: pd.DataFrame) -> Table:
    """Table A.1: in each cell the paper's, ours, and the ratio; bold where ours is lowest."""
    table = Table(["Task", *(f"τ = {tau_text(tau)}" for tau in beside.taus)])
    for i, (task, rows) in enumerate(numbers.groupby("task", sort=False)):
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
    return "–" if math.isnan(value) else "lowest" if value == 0 else f"{100 * value:+.1f}%".replace("-", "−")


def _answer(beside: Beside) -> str:
    """Where each is lowest, and how alike they rank, in one paragraph."""
    if not beside.taus:
        wanted = ",".join(f"{tau:g}" for tau in beside.paper.taus)
        return (
            "**This run fitted none of the paper's values of τ: no two numbers stand beside each other.** "
            f"Fit them too: search.taus=\\[{wanted}\\]."
        )
    said = []
    for curves, where in ((beside.paper, "in the paper"), (beside.ours, "here")):
        value, tau = min(zip(curves.overall_V[curves.at(beside.taus)], beside.taus, strict=True))
        said.append(f"{where} at τ = {tau_text(tau)} ({perplexity_text(value)})")
    first = f"**Of the {len(beside.taus)} values of τ that both have, perplexity is lowest {' and '.join(said)}.**"
    return f"{first} {_tau_rank_text(beside)} {_whose_tasks(beside)}"


def _tau_rank_text(beside: Beside) -> str:
    rank = beside.tau_rank
    return (
        "They are too few to rank." if math.isnan(rank.rho) else f"Over these values they rank with {_rank_text(rank)}."
    )


def _whose_tasks(beside: Beside) -> str:
    num_tasks, num_common = len(beside.ours.tasks), len(beside.pairs)
    if num_common == 0:
        return (
            f"The {num_tasks:,} tasks are not the paper's, none has a name of Table A.1: levels cannot be compared, "
            "the shape over τ can."
        )
    rest = "" if num_common == num_tasks else "; the numbers over all tasks are of others too"
    ranks = [_rank_text(beside.task_rank(tau)) for tau in beside.taus if tau == 100]
    told = f" At τ = 100 these tasks rank with {ranks[0]}." if ranks else ""
    return (
        f"{num_common} of the {num_tasks:,} tasks are among the paper's {len(beside.paper.tasks)} by name{rest}.{told}"
    )


def _rank_text(rank: Rank) -> str:
    if math.isnan(rank.rho):
        return f"no ρ: {rank.n} are too few"
    interval = "" if math.isnan(rank.low) else f" [{rank.low:.2f}, {rank.high:.2f}]"
    p = "p < 0.001" if rank.p < 0.001 else f"p = {rank.p:.2g}"
    return f"Spearman's ρ = {rank.rho:.2f}{interval} ({p}, n = {rank.n})".replace("-", "−")


def _about_table_1(beside: Beside) -> str:
    return (
        "Bold: each one's lowest. *Above*: how far a value lies above its own lowest of the τ that both have, which "
        f"compares the two where their levels do not. Ours: {markdown_text(beside.ours_is, 400)}. The paper has no τ = "
        "∞, it takes τ = 10,000 for that limit. "
        "[As numbers](tables/paper_table_1.csv), [LaTeX](tables/paper_table_1.tex)."
    )


def _figure_text(beside: Beside) -> str:
    lowest = ""
    if beside.taus:
        told = [
            f"{where} {', '.join(f'{n} at τ = {tau_text(tau)}' for tau, n in curves.lowest(beside.taus).items() if n)}"
            for curves, where in ((beside.paper, "of the paper's"), (beside.ours, "of ours"))
        ]
        lowest = f" Where a task is lowest, of the τ that both have: {'; '.join(told)}."
    alt = (
        "Line plots over the precision τ of the paper's and this run's perplexity: as they are, and over their lowest."
    )
    return (
        f"![{alt}](figures/{FIGURE}.png)\n\n"
        "**Figure 2 of the paper, under ours.** Thick: all tasks together; thin: each task. Orange: the paper; black: "
        f"this run. Beyond the breaks of the axis: τ = 0 and τ = ∞.{lowest}"
    )


def _tasks_text(beside: Beside, table: Table | None) -> str:
    if table is None:
        return ""
    ranks = Table(["τ", "Tasks, the paper's against ours"])
    ranks.rows = [[tau_text(tau), _rank_text(beside.task_rank(tau))] for tau in beside.taus]
    return "\n\n".join(
        [
            "## Table A.1",
            markdown_table(table),
            "In each cell the paper's perplexity · ours · ours over the paper's; bold: ours is lowest. "
            "[As numbers](tables/paper_table_a1.csv), [LaTeX](tables/paper_table_a1.tex).",
            "Whether the same tasks are hard in both:",
            markdown_table(ranks, limit=160),
            "Brackets: 95% intervals over tasks by Bonett and Wright (2000). p counts every order of up to "
            f"{EXACT} tasks, and is by Student's t beyond.",
        ]
    )


def _settings_text(summary: Summary) -> str:
    table = Table(["Setting", "The paper's numbers", "This run"])
    table.rows = [[key, _value(paper), _value(ours)] for key, paper, ours in settings_that_differ(summary)]
    told = markdown_table(table) if table.rows else "None that was looked at."
    return f"## Settings that differ\n\n{told}"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _origin(beside: Beside) -> str:
    return (
        "## Where the paper's numbers come from\n\n"
        "Eide and Frigessi (2025), Tables 1 and A.1, as their published code made them. It is not what the paper's "
        "text says: a task's number is its best epoch's on validation and no test perplexity, padding is scored, and "
        "the penalty is the distance of each matrix and not its square. `protocol=published_code` fits and reports as "
        "that code does; docs/reproduction.md says what each of these does to the numbers.\n\n"
        f"{_at_odds(beside)}"
    )


def _at_odds(beside: Beside) -> str:
    """Where Table 1 is not what Table A.1's tasks make together."""
    means_V, overall_V = beside.paper.perplexity_DV.mean(axis=0), beside.paper.overall_V
    odd = [
        v for v, (mean, overall) in enumerate(zip(means_V, overall_V, strict=True)) if abs(mean / overall - 1) > 0.02
    ]
    others = max(abs(means_V[v] / overall_V[v] - 1) for v in range(len(means_V)) if v not in odd)
    return " ".join(
        f"At τ = {tau_text(beside.paper.taus[v])} the two tables do not agree: {perplexity_text(overall_V[v])} in "
        f"Table 1, and {perplexity_text(means_V[v])} on average over the tasks of Table A.1. At all other values the "
        f"two are within {100 * others:.1f}% of each other."
        for v in odd
    )
