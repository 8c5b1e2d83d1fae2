"""A run compared with the paper: fabricated results whose relation to the paper's numbers is known."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up_runs import SIZES, TAUS, table_after, write_run, write_trial

from bora_sweep.cli import main
from bora_sweep.config import load_config
from bora_sweep.report import write_report
from bora_sweep.report.paper.compare import (
    PaperComparison,
    TauCurves,
    compare_with_paper,
    name_key,
    overall_frame,
    published_table,
    task_frame,
)
from bora_sweep.report.stats.pool_trials import summarise
from bora_sweep.runs.results import read_results

PAPER_TAUS = (0.0, 1.0, 10.0, 100.0, 1_000.0, 10_000.0)
TABLE_A1 = published_table("table_a1").pivot_table(index="task", columns="tau", values="perplexity")
NAMES = {
    "Abid Q. Raja": "abid q raja",
    "ANITA APELTHUN SÆLE": "anita apelthun sæle",
    "bjørn jacobsen": "bjørn jacobsen",
}


def write_papers(run: Path, names: dict[str, str] = NAMES, factor: float = 2.0, **columns: object) -> Path:
    """A run on some of the paper's tasks, its perplexities close to `factor` times the paper's."""
    for tau in (*PAPER_TAUS, math.inf):
        nats = {ours: math.log(factor * TABLE_A1.at[paper, min(tau, 1e4)]) for ours, paper in names.items()}
        write_trial(run, tau, dict.fromkeys(names, 60), nats=nats, floor=None, **columns)
    return run


def comparison_of(run: Path) -> PaperComparison:
    results = read_results(run)
    return compare_with_paper(summarise(results), results)


def test_tasks_are_matched_by_name_and_each_number_is_paired_with_its_own(tmp_path: Path):
    run = write_papers(tmp_path)
    comparison = comparison_of(run)
    numbers = task_frame(comparison)
    assert len(numbers) == 3 * 6
    for row in numbers.to_dict("records"):
        assert row["paper"] == TABLE_A1.at[NAMES[row["task"]], row["tau"]]
        assert row["ratio"] == row["ours"] / row["paper"] == pytest.approx(2.0, rel=0.15)  # documents are noisy
    summary = summarise(read_results(run))
    for task, part in numbers.groupby("task"):
        ours = summary.chosen_by.test_DM[summary.tasks.index(str(task))]
        assert part["ours"].tolist() == ours[[summary.fits[i] for i in range(6)]].tolist()


def test_table_1_has_every_tau_of_either_and_compares_those_of_both(tmp_path: Path):
    comparison = comparison_of(write_run(tmp_path))
    numbers = overall_frame(comparison).set_index("tau")
    assert numbers.index.tolist() == sorted({*PAPER_TAUS, *TAUS})
    assert comparison.taus == [0.0, 100.0, 1_000.0, 10_000.0]
    assert numbers["ratio"].dropna().index.tolist() == comparison.taus
    assert numbers.at[1_000.0, "ours_above_lowest"] == 0
    assert numbers.at[100.0, "paper_above_lowest"] == 0
    assert numbers.at[0.0, "ours_above_lowest"] == pytest.approx(math.exp(0.13) - 1, rel=1e-3)
    assert math.isnan(numbers.at[math.inf, "paper"])


def test_the_page_says_whose_tasks_they_are(tmp_path: Path):
    write_report(write_papers(tmp_path / "theirs"), against_paper=True)
    page = (tmp_path / "theirs" / "report" / "paper.md").read_text()
    assert "perplexity is lowest in the paper at τ = 100 (12.82) and here at τ = 100" in page
    assert "3 of the 3 tasks are among the paper's 25 by name." in page
    rows = table_after(page, "## Table A.1")
    assert [row[0] for row in rows[1:]] == list(NAMES)
    assert rows[1][4].startswith("11.60 · ")
    write_report(write_run(tmp_path / "others"), against_paper=True)
    page = (tmp_path / "others" / "report" / "paper.md").read_text()
    assert "None of this run's 5 tasks has the name of one of the paper's" in page
    assert "## Table A.1" not in page
    assert "of ours 5 at τ = 1,000" in page
    mixed = {**NAMES, "someone else": "arve kambe"}
    write_report(write_papers(tmp_path / "mixed", mixed), against_paper=True)
    page = (tmp_path / "mixed" / "report" / "paper.md").read_text()
    assert "3 of the 4 tasks are among the paper's 25 by name. The numbers over all tasks include the others." in page


def test_a_run_without_the_papers_taus_is_told_which_to_fit(tmp_path: Path):
    write_report(write_run(tmp_path, (3.0, 30.0)), against_paper=True)
    page = (tmp_path / "report" / "paper.md").read_text()
    assert "fitted none of the paper's values" in page
    assert r"search.taus=\[0,1,10,100,1000,10000\]" in page


def test_what_the_protocol_reports_stands_for_test_perplexity(tmp_path: Path):
    write_papers(tmp_path, reported_perplexity=7.0, reported_as="each task's best epoch")
    for file in (tmp_path / "results" / "task_scores").iterdir():
        frame = pd.read_parquet(file)
        frame.loc[frame["split"] == "validation", "reported_perplexity"] = 5.0
        frame.to_parquet(file)
    comparison = comparison_of(tmp_path)
    assert comparison.our_measure == "each task's best epoch"
    assert set(comparison.ours.overall_V) == {7.0}
    assert set(comparison.ours.perplexity_DV.ravel()) == {5.0}


def test_a_fit_of_the_published_protocol_is_compared_by_what_it_reports(
    tmp_path: Path, corpus_file: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
):
    small = ["model.max_tokens=24", "model.max_text_tokens=16", "lora.rank=2", "train.max_epochs=2", "train.device=cpu"]
    own = [f"data.path={corpus_file}", f"model.name={model_folder}", "prior.tau=100", f"output={tmp_path / 'run'}"]
    assert main(["fit", "protocol=published_code", *small, *own]) == 0
    comparison = comparison_of(tmp_path / "run")
    results = read_results(tmp_path / "run")
    assert comparison.ours.overall_V.tolist() == results.trials["reported_perplexity"].tolist()
    assert comparison.ours.overall_V[0] != results.trials["test_perplexity"][0]
    scores = results.task_scores.dropna(subset=["reported_perplexity"]).set_index("task")["reported_perplexity"]
    assert dict(zip(comparison.ours.tasks, comparison.ours.perplexity_DV[:, 0], strict=True)) == scores.to_dict()
    assert main(["report", str(tmp_path / "run"), "--against", "paper"]) == 0
    assert "validation, each task's best epoch" in (tmp_path / "run" / "report" / "paper.md").read_text()
    capsys.readouterr()


def test_settings_that_differ_are_listed_and_no_others(tmp_path: Path):
    experiment = str(Path(__file__).parents[2] / "conf" / "experiment" / "talk_of_norway.yaml")
    same = load_config([experiment, "data.path=x", "protocol=published_code", "model.name=/a/opt-350m"])
    write_papers(tmp_path / "same", config_json=same.to_json())
    write_report(tmp_path / "same", against_paper=True)
    assert "None of those compared." in (tmp_path / "same" / "report" / "paper.md").read_text()
    other = load_config([experiment, "data.path=x", "protocol=published_code", "lora.rank=4", "model.name=/a/mine"])
    write_papers(tmp_path / "other", config_json=other.to_json())
    write_report(tmp_path / "other", against_paper=True)
    rows = table_after((tmp_path / "other" / "report" / "paper.md").read_text(), "## Settings that differ")
    assert rows[1:] == [["model.name", "facebook/opt-350m", "/a/mine"], ["lora.rank", "16", "4"]]


def test_the_tables_of_the_paper_do_not_agree_at_tau_10(tmp_path: Path):
    write_report(write_run(tmp_path), against_paper=True)
    page = (tmp_path / "report" / "paper.md").read_text()
    assert "At τ = 10 the two tables do not agree: 12.85 in Table 1, and 13.94 on average" in page
    assert page.count("do not agree") == 1


def test_the_command_prints_it_in_short_and_the_report_links_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = write_papers(tmp_path)
    assert main(["report", str(run), "--against", "paper"]) == 0
    printed = capsys.readouterr().out
    assert "perplexity is lowest in the paper" in " ".join(printed.split())
    assert "12.82" in printed
    assert "paper.md" in printed
    assert "(paper.md)" in (run / "report" / "report.md").read_text()
    with pytest.raises(SystemExit) as caught:
        main(["report", str(run), "--against", "everything"])
    assert caught.value.code == 2
    assert main(["report", str(run)]) == 0
    assert "paper.md" not in (run / "report" / "report.md").read_text()


def test_the_figure_has_both_curves_in_both_panels(tmp_path: Path):
    from bora_sweep.report.paper.tau_figure import OURS, PAPER, draw

    comparison = comparison_of(write_papers(tmp_path))
    for axes, over_lowest in zip(draw(comparison).axes, (False, True), strict=True):
        for color, curves in ((PAPER, comparison.paper), (OURS, comparison.ours)):
            (dots,) = [line for line in axes.lines if line.get_color() == color and line.get_marker() == "o"]
            expected = curves.above_lowest(comparison.taus)[0] if over_lowest else curves.overall_V
            np.testing.assert_allclose(np.asarray(dots.get_ydata()), expected)
            assert len(dots.get_xdata()) == len(curves.taus)


def test_each_curve_is_measured_from_its_own_lowest_of_the_taus_asked_for():
    curves = TauCurves(
        [0.0, 1.0, 2.0], [1.0] * 3, np.array([4.0, 3.0, 2.0]), ["a", "b"], np.array([[8.0, 4, 1], [5, 6, 9]])
    )
    overall_V, tasks_DV = curves.above_lowest([0.0, 1.0])
    np.testing.assert_allclose(overall_V, [1 / 3, 0, -1 / 3])
    np.testing.assert_allclose(tasks_DV, [[1, 0, -0.75], [0, 0.2, 0.8]])
    assert curves.tasks_lowest_at([0.0, 1.0]) == {0.0: 1, 1.0: 1}


def test_names_agree_but_for_case_and_full_stops():
    assert name_key("Abid Q. Raja") == name_key("abid q raja") == name_key("Abid  Q Raja")
    assert name_key("bjørn hernæs") == name_key("BJØRN HERNÆS") != name_key("bjorn hernaes")
    assert SIZES.keys().isdisjoint(NAMES)
