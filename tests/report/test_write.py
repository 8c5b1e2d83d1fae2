"""The report as a whole, made from fabricated results whose best tau is known."""

import csv
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pandas as pd
import pytest
from made_up_runs import HOSTILE, SIZES, TAUS, paragraph, table_after, write_run, write_trial
from markdown_it import MarkdownIt

from bora_sweep.report import write_report
from bora_sweep.report.text.formats import perplexity_text

CSV = ("table_1", "table_a1", "improvements", "trends", "curve", "choice", "pooling", "trials")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(run: Path, real_pictures: None) -> str:  # noqa: ARG001
    return write_report(run).read_text()


def test_the_answer_comes_first(page: str):
    assert page.split("\n\n")[1].startswith("**Serve each task's own adapter (τ = 1,000): 3.9% [3.9, 3.9] better than ")
    answer = paragraph(page)
    assert answer.startswith("**τ = 1,000 gives test perplexity ")
    assert "12.2% [12.2, 12.2] below one model per task (τ = 0)" in answer  # 1 - exp(-0.13), alike in every document
    assert "3.9% [3.9, 3.9] below one model for all (τ = ∞)" in answer
    assert answer.count("excludes 0.") == 2
    assert "inside the fitted range, between 100 and 10,000" in page
    assert "Note." not in page


def test_every_file_is_there_and_whole(run: Path, page: str):
    report = run / "report"
    assert not [path for path in report.rglob("*") if path.name.startswith(".")]
    names = {path.relative_to(report).as_posix() for path in report.rglob("*.*")}
    assert {f"tables/{name}.csv" for name in CSV} <= names
    assert {"tables/table_1.tex", "tables/table_2.tex", "tables/table_a1.tex", "report.md"} <= names
    shown = [name for name in names if name.endswith(".png")]
    assert len(shown) == 6
    for name in shown:
        assert f"]({name})" in page
        assert (report / name).read_bytes().startswith(b"\x89PNG")
        ElementTree.parse(report / name.replace(".png", ".svg"))


def test_same_results_same_bytes(run: Path, page: str):
    before = {path: path.read_bytes() for path in (run / "report").rglob("*.*")}
    assert page == write_report(run).read_text()
    assert before == {path: path.read_bytes() for path in (run / "report").rglob("*.*")}


def test_table_1_is_ordered_and_bold_at_the_best(run: Path, page: str):
    rows = table_after(page, "## Table 1")
    assert [row[0] for row in rows[1:]] == ["zero-shot", "0", "100", "1,000", "10,000", "∞", "floor (the true source)"]
    assert rows[4][-1] == "best"
    assert rows[2][-1] == "+13.9% [+13.9, +13.9]"
    assert rows[-1][5] == perplexity_text(math.exp(2.6))
    assert "| **1,000** | **0.003** | **1** | **30 (25)** |" in page
    numbers = pd.read_csv(run / "report" / "tables" / "table_1.csv")
    assert numbers["tau"].tolist()[1:] == [*TAUS]
    assert numbers["best"].tolist() == [False, False, False, True, False, False]


def test_a_single_fit_makes_a_report(tmp_path: Path):
    page = write_report(write_run(tmp_path, taus=(100.0,), floor=None)).read_text()
    assert "It is the only value fitted." in page
    assert "Figure 3.** Needs a finished fit at τ = 0 or τ = ∞" in page
    assert "floor" not in page


def test_a_fit_that_diverged_is_shown_and_not_chosen(tmp_path: Path, recwarn: pytest.WarningsRecorder):
    write_run(tmp_path, taus=(0.0, 100.0))
    for tau, nats in ((math.inf, 800.0), (10_000.0, math.nan)):
        write_trial(tmp_path, tau, nats=dict.fromkeys(SIZES, nats))
    page = write_report(tmp_path).read_text()
    assert paragraph(page).startswith("**τ = 100 gives")
    assert [row[5] for row in table_after(page, "## Table 1")[3:5]] == ["– [–, –]", "∞ [∞, ∞]"]
    assert not recwarn.list


@pytest.mark.usefixtures("real_pictures")
def test_hostile_names_break_nothing(tmp_path: Path, recwarn: pytest.WarningsRecorder):
    sizes = {name: 10 + i for i, name in enumerate(HOSTILE)}
    report = write_report(write_run(tmp_path / "$r_u|n$<b>", taus=(None, 0.0, 10.0, math.inf), sizes=sizes)).parent
    assert not recwarn.list
    page = (report / "report.md").read_text()
    rows = table_after(page, "## Table A.1")
    assert {len(row) for row in rows} == {7}
    names = {row[0] for row in rows[1:]}
    assert {"<script>alert(1)</script>", "a|b", "a_b_c", "$x$ and $y", "**b** [l](u) `c`", "日本語"} <= names
    assert "x" * 59 + "…" in names
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(page)
    assert "<script" not in html
    assert html.count("<code") == 2  # the commands that the report itself names
    assert html.count("<table>") == 8
    latex = (report / "tables" / "table_a1.tex").read_text()
    body = latex[latex.index(r"\midrule") : latex.index(r"\bottomrule")].splitlines()[1:]
    assert len(body) == len(HOSTILE)
    assert all(line.endswith(r" \\") and line.replace(r"\&", "").count("&") == 6 for line in body)
    with (report / "tables" / "table_a1.csv").open(newline="") as file:
        assert {row["task"] for row in csv.DictReader(file)} == set(HOSTILE)
    for drawing in report.glob("figures/*.svg"):
        ElementTree.parse(drawing)
