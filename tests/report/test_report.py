"""The report, made from fabricated results whose best tau is known."""

import ast
import csv
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up_runs import HOSTILE, SIZES, TAUS, table_after, write_run, write_trial
from markdown_it import MarkdownIt

from bora_sweep.errors import InputError
from bora_sweep.report import analyse, write_report
from bora_sweep.report import write as page_module
from bora_sweep.report.figures.tau_axis import TauAxis
from bora_sweep.report.stats.summary import summarise
from bora_sweep.report.text.formats import latex_text, markdown_text, perplexity_text, tau_text
from bora_sweep.report.text.tables import split_table, task_numbers, task_table
from bora_sweep.runs.results import read_results, write_table

PAPER = Path(__file__).resolve().parents[3] / "shared" / "paper"
DRAWS = ("figures", "paper_figure", "report")  # report.py names the type of a figure
CSV = ("table_1", "table_a1", "improvements", "trends", "curve", "choice", "trials")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of words alone: figures are made, but not rendered."""
    monkeypatch.setattr(page_module, "render", lambda _: (b"", b""))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_report(run).read_text()


def test_the_answer_comes_first(page: str):
    answer = page.split("\n\n")[1]
    assert answer.startswith("**τ = 1,000 gives test perplexity ")
    assert "12.2% [12.2, 12.2] below one model per task (τ = 0)" in answer  # 1 - exp(-0.13), alike in every document
    assert "3.9% [3.9, 3.9] below one model for all (τ = ∞)" in answer
    assert answer.count("excludes 0.") == 2
    assert "interior; its fitted neighbours are 100 and 10,000" in page
    assert "Note." not in page


def test_every_file_is_there_and_whole(run: Path, page: str):
    report = run / "report"
    assert not [path for path in report.rglob("*") if path.name.startswith(".")]
    names = {path.relative_to(report).as_posix() for path in report.rglob("*.*")}
    assert {f"tables/{name}.csv" for name in CSV} <= names
    assert {"tables/table_1.tex", "tables/table_2.tex", "tables/table_a1.tex", "report.md"} <= names
    shown = [name for name in names if name.endswith(".png")]
    assert len(shown) == 5
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


@pytest.mark.usefixtures("undrawn")
def test_seeds_are_pooled_by_sums(tmp_path: Path):
    for seed in (0, 1):
        write_trial(tmp_path, 100.0, seed=seed)
    results = read_results(tmp_path)
    rows = results.task_scores[results.task_scores["split"] == "test"]
    summary = summarise(results)
    (setting,) = summary.settings
    assert setting.seeds == 2
    assert setting.test_perplexity == pytest.approx(math.exp(rows["nll_nats"].sum() / rows["num_tokens"].sum()))
    by_task = rows.groupby("task")[["nll_nats", "num_tokens"]].sum()
    macro = np.exp(by_task["nll_nats"] / by_task["num_tokens"]).mean()
    assert setting.test_macro_perplexity == pytest.approx(macro)
    assert split_table(summary).rows[0][1] == str(sum(SIZES.values()))
    assert "| **2** | **30–31 (25)** |" in write_report(tmp_path).read_text()


def test_validation_selects_and_test_does_not(tmp_path: Path):
    write_run(tmp_path)
    for table in ("task_scores", "document_scores"):  # make tau = 100 the best on test alone
        rows = read_results(tmp_path)
        frame = getattr(rows, table)
        mine = frame[frame["trial_id"] == "tau=100-0"].drop(columns="run")
        nats = mine["nll_nats"].mask(mine["split"] == "test", mine["num_tokens"] * 2.0)
        write_table(tmp_path, table, "tau=100-0", mine.assign(nll_nats=nats))
    summary = summarise(read_results(tmp_path))
    assert summary.best_tau == 1_000
    assert min(summary.settings, key=lambda setting: setting.test_perplexity).tau == 100


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("best", [0.0, math.inf])
def test_a_best_value_at_an_end_is_said_so(tmp_path: Path, best: float):
    write_run(tmp_path, nats=None)
    write_trial(tmp_path, best, nats=dict.fromkeys(SIZES, 2.7))
    page = write_report(tmp_path).read_text()
    assert f"at an end of those fitted (τ = {tau_text(best)}" in page
    assert page.split("\n\n")[1].count("% [") == 1  # the best is not compared with itself
    assert "at τ = 1,000, against the task's number of training documents. The best fit" in page  # Figure 4


@pytest.mark.usefixtures("undrawn")
def test_a_baseline_that_wins_on_test_is_above_and_its_interval_may_hold_0(tmp_path: Path):
    write_trial(tmp_path, 100.0)
    write_trial(tmp_path, 0.0)
    rows = read_results(tmp_path)
    for table, frame in (("task_scores", rows.task_scores), ("document_scores", rows.document_scores)):
        mine = frame[frame["trial_id"] == "tau=100-0"].drop(columns="run").reset_index(drop=True)
        noise = np.random.default_rng(0).normal(0.001, 0.05, len(mine)) * mine["num_tokens"]
        better = mine.assign(nll_nats=(mine["nll_nats"] + noise).where(mine["split"] == "test", mine["nll_nats"] * 0.9))
        if table == "document_scores":
            write_table(tmp_path, table, "tau=0-0", better)
        else:
            write_table(tmp_path, table, "tau=0-0", mine.assign(nll_nats=mine["nll_nats"] * 1.1))
    answer = write_report(tmp_path).read_text().split("\n\n")[1]
    assert "includes 0: these documents do not tell the two apart" in answer


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("tau", "said"), [(0.0, "one model per task"), (1_000.0, "the best"), (100.0, None)])
def test_the_best_or_a_baseline_at_the_cap_is_a_warning(tmp_path: Path, tau: float, said: str | None):
    write_run(tmp_path)
    write_trial(tmp_path, tau, stopped_by="max_epochs")
    page = write_report(tmp_path).read_text()
    assert ("Not converged" in page) == (said is not None)
    if said:
        assert f"τ = {tau_text(tau)} ({said}) stopped at train.max_epochs" in page


@pytest.mark.usefixtures("undrawn")
def test_an_unfinished_run_is_reported_as_far_as_it_is(tmp_path: Path):
    write_run(tmp_path, taus=(0.0, 100.0))
    for i, status in enumerate(("running", "failed", "interrupted")):
        error = "RuntimeError: out of | memory" if status == "failed" else None
        row = {"status": status, "method": "map", "tau": 10.0 * (i + 1), "seed": 0, "error": error}
        write_table(tmp_path, "trials", f"later-{i}", [row])
    page = write_report(tmp_path).read_text()
    assert "Not finished and left out: 3 of 5 trials (1 failed, 1 interrupted, 1 running)." in page
    assert "No finished fit at τ = ∞ to compare with." in page
    rows = table_after(page, "## Trials")
    assert {row[1] for row in rows[1:]} == {"finished", "running", "failed", "interrupted"}
    assert ["later-1", "failed", "20", "0", "–", "–", "–", "–", "RuntimeError: out of | memory"] in rows


def test_a_single_fit_makes_a_report(tmp_path: Path):
    page = write_report(write_run(tmp_path, taus=(100.0,), floor=None)).read_text()
    assert "It is the only value fitted." in page
    assert "Figure 3.** Needs a finished fit at τ = 0 or τ = ∞" in page
    assert "floor" not in page


def test_no_finished_fit_is_the_users_to_know(tmp_path: Path):
    write_trial(tmp_path, None)
    write_table(tmp_path, "trials", "a", [{"status": "failed", "method": "map", "tau": 1.0}])
    with pytest.raises(InputError, match=r"no fit has finished yet \(trials: .*1 failed"):
        write_report(tmp_path)
    with pytest.raises(InputError, match="not a run's folder"):
        write_report(tmp_path / "nowhere")


@pytest.mark.usefixtures("undrawn")
def test_one_tau_fitted_in_several_ways_is_judged_on_validation(tmp_path: Path):
    write_run(tmp_path)
    write_trial(tmp_path, 100.0, nats=dict.fromkeys(SIZES, 9.0), trial_id="diverged", learning_rate=1.0)
    page = write_report(tmp_path).read_text()
    assert [row[:2] for row in table_after(page, "## Table 1")[1:]].count(["100", "0.003"]) == 1
    assert "more than one learning rate, alpha, parametrization or solver: τ = 100;" in page


def test_a_fit_that_diverged_is_shown_and_not_chosen(tmp_path: Path, recwarn: pytest.WarningsRecorder):
    write_run(tmp_path, taus=(0.0, 100.0))
    for tau, nats in ((math.inf, 800.0), (10_000.0, math.nan)):
        write_trial(tmp_path, tau, nats=dict.fromkeys(SIZES, nats))
    page = write_report(tmp_path).read_text()
    assert page.split("\n\n")[1].startswith("**τ = 100 gives")
    assert [row[5] for row in table_after(page, "## Table 1")[3:5]] == ["– [–, –]", "∞ [∞, ∞]"]
    assert not recwarn.list


def test_a_finished_trial_without_scores_is_named(tmp_path: Path):
    write_run(tmp_path)
    (tmp_path / "results" / "document_scores" / "tau=inf-0.parquet").unlink()
    with pytest.raises(InputError, match=r"tau=inf-0 has finished, but results/document_scores/tau=inf-0\.parquet"):
        write_report(tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_runs_are_read_together_and_other_documents_are_refused(tmp_path: Path):
    first = write_run(tmp_path / "a", taus=(0.0, 100.0))
    second = write_run(tmp_path / "b", taus=(math.inf,))
    assert write_report([first, second, first]) == first / "report" / "report.md"
    assert "below one model for all (τ = ∞)" in (first / "report" / "report.md").read_text()
    other = write_run(tmp_path / "c", taus=(1.0,), sizes=SIZES | {"bo": 30})
    with pytest.raises(InputError, match=r"trial tau=0-0: document '.*' of task 'bo' .* has no score"):
        write_report([first, other])


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
    assert "<code" not in html
    assert html.count("<table>") == 6
    latex = (report / "tables" / "table_a1.tex").read_text()
    body = latex[latex.index(r"\midrule") : latex.index(r"\bottomrule")].splitlines()[1:]
    assert len(body) == len(HOSTILE)
    assert all(line.endswith(r" \\") and line.replace(r"\&", "").count("&") == 6 for line in body)
    with (report / "tables" / "table_a1.csv").open(newline="") as file:
        assert {row["task"] for row in csv.DictReader(file)} == set(HOSTILE)
    for drawing in report.glob("figures/*.svg"):
        ElementTree.parse(drawing)


def test_latex_escapes_every_special_character():
    assert latex_text("50% of_A & B #1 $5 {x} ~ ^ \\end") == (
        r"50\% of\_A \& B \#1 \$5 \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{}end"
    )
    assert latex_text("å ø 🙂") == "å ø U+1F642"


@pytest.mark.parametrize("name", ["a | b", "\\", "\\|", "*", "_x_", "`", "<b>", "&amp;", "![a](b)", "https://x.y"])
def test_markdown_reads_back_the_name(name: str):
    assert table_after(f"| {markdown_text(name)} | b |\n| --- | --- |\n", "")[0] == [name, "b"]


@pytest.mark.parametrize(
    ("tau", "text"),
    [(0.0, "0"), (math.inf, "∞"), (1.0, "1"), (0.034567, "0.0346"), (1234.5, "1,230"), (999.9, "1,000")],
)
def test_tau_text(tau: float, text: str):
    assert tau_text(tau) == text


@pytest.mark.parametrize("taus", [[5.0], [0.0, math.inf], [0.0, 3.0], [0.0, 1.0, 10.0, math.inf], [2.0, 3.0, math.inf]])
def test_the_tau_axis_ascends_and_its_parts_join_all_places(taus: list[float]):
    scale = TauAxis(taus)
    assert (np.diff(scale.x) > 0).all()
    assert {i for part, _ in scale.parts() for i in range(len(taus))[part]} == set(range(len(taus)))


@pytest.mark.usefixtures("undrawn")
def test_many_tasks_and_taus_are_cut_on_the_page_and_whole_in_csv(tmp_path: Path):
    sizes = {f"task {d:03d}": 5 + d for d in range(120)}
    run = write_run(tmp_path, taus=(0.0, *(10.0**k for k in np.linspace(0, 5, 14)), math.inf), sizes=sizes)
    report = write_report(run).parent
    rows = table_after((report / "report.md").read_text(), "## Table A.1")
    assert len(rows) == 42
    assert rows[1][0] == "task 119"
    assert rows[-1][0] == "task 000"
    assert len(rows[0]) <= 2 + 8 + 1
    numbers = pd.read_csv(report / "tables" / "table_a1.csv")
    assert numbers.shape == (120, 4 + 3 * 16 + 1)


@pytest.mark.usefixtures("undrawn")
def test_the_papers_table_a1(tmp_path: Path):
    if not PAPER.is_dir():
        pytest.skip(f"{PAPER} is not here")
    known = pd.read_csv(PAPER / "table_a1_task_perplexity.csv")
    sizes = pd.read_csv(PAPER / "task_sizes.csv").set_index("task")["train_docs"].to_dict()
    for tau, rows in known.groupby("tau"):
        write_paper_trial(tmp_path, float(tau), rows.set_index("task")["perplexity"].to_dict(), sizes)
    summary = summarise(read_results(tmp_path))
    wide = known.pivot(index="task", columns="tau", values="perplexity").loc[summary.tasks]
    analysis = analyse(summary)
    numbers = task_numbers(analysis)
    for tau in wide.columns:
        assert numbers[f"tau={float(tau)!r}"].to_numpy() == pytest.approx(wide[tau].to_numpy(), abs=1e-6)
    assert summary.best_tau == 100
    table = task_table(analysis)
    assert {j for _, j in table.bold} == {table.columns.index("τ = 100")}  # "best … for all our tasks"
    assert "best value is interior" in write_report(tmp_path).read_text()


def write_paper_trial(run: Path, tau: float, perplexities: dict[str, float], sizes: dict[str, int]) -> None:
    """A trial whose test perplexities are the given ones exactly."""
    rng = np.random.default_rng(0)
    tasks, documents = [], []
    for task, size in sizes.items():
        for split, count in (("train", size), ("validation", size // 2), ("test", size // 2)):
            tokens, noise = np.full(count, 100), rng.normal(0, 0.3, count)
            nats = tokens * (math.log(perplexities[task]) + noise - noise.mean())
            scores = {} if split == "train" else {"nll_nats": nats.sum(), "distance_to_global": 0.1 * math.sqrt(size)}
            tasks.append({"task": task, "split": split, "num_documents": count, "num_tokens": 100 * count, **scores})
            if split != "train":
                documents += [
                    {"task": task, "split": split, "document_id": str(n), "num_tokens": 100, "nll_nats": nats[n]}
                    for n in range(count)
                ]
    trial_id = f"tau={tau:g}"
    write_table(run, "task_scores", trial_id, tasks)
    write_table(run, "document_scores", trial_id, documents)
    trial = {"status": "finished", "method": "map", "tau": tau, "seed": 0, "learning_rate": 1e-5 * tau or 1e-4}
    write_table(run, "trials", trial_id, [trial])


def test_the_report_knows_results_alone():
    """It runs where torch and Ray are not installed, and only modules of figures draw."""
    folder = Path(write_report.__code__.co_filename).parent
    allowed = (
        "bora_sweep.report",
        "bora_sweep.runs.results",
        "bora_sweep.errors",
        "bora_sweep.process",
        "bora_sweep.config",
        "bora_sweep.runs.storage",
    )
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert not name.startswith("bora_sweep") or name.startswith(allowed), (path.name, name)
                assert not name.startswith("matplotlib") or path.stem in DRAWS, (path.name, name)
                assert name.split(".")[0] not in ("torch", "ray", "optuna", "transformers")
                assert name != "matplotlib.pyplot"
