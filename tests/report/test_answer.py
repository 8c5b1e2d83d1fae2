"""The first lines of the report and its notes."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_runs import SIZES, paragraph, table_after, write_run, write_trial

from bora_sweep.report import write_report
from bora_sweep.report.text.formats import tau_text
from bora_sweep.runs.results import read_results, write_table


@pytest.mark.parametrize("best", [0.0, math.inf])
def test_a_best_value_at_an_end_is_said_so(tmp_path: Path, best: float):
    write_run(tmp_path, nats=None)
    write_trial(tmp_path, best, nats=dict.fromkeys(SIZES, 2.7))
    page = write_report(tmp_path).read_text()
    assert f"at an end of the fitted range (τ = {tau_text(best)}" in page
    assert paragraph(page).count("% [") == 1  # the best is not compared with itself
    assert "at τ = 1,000, by the task's number of training documents. The best fit" in page  # Figure 4


@pytest.mark.parametrize(
    ("taus", "lies"),
    [
        ((0.0, 100.0, 1_000.0, math.inf), "is the highest finite one fitted."),
        ((0.0, 1_000.0, 10_000.0, math.inf), "is the lowest fitted above 0."),
        ((0.0, 1_000.0, math.inf), "is the only one fitted between 0 and ∞."),
        ((100.0, 1_000.0, 10_000.0), "lies inside the fitted range, between 100 and 10,000."),
    ],
)
def test_a_best_value_beside_an_end_is_not_said_to_lie_inside(tmp_path: Path, taus: tuple[float, ...], lies: str):
    page = write_report(write_run(tmp_path, taus=taus)).read_text()
    assert f"The best value {lies}" in page
    assert "may be better (search.taus" not in page or "inside the fitted range" not in page


def test_a_baseline_that_wins_on_test_is_above_and_its_interval_may_hold_0(tmp_path: Path):
    write_trial(tmp_path, 100.0)
    write_trial(tmp_path, 0.0)
    rows = read_results(tmp_path)
    for table, frame in (("task_scores", rows.task_scores), ("document_scores", rows.document_scores)):
        mine = frame[frame["trial_id"] == "tau=100-0"].drop(columns="run").reset_index(drop=True)
        noise = np.random.default_rng(0).normal(0.001, 0.05, len(mine))
        worse: Any = mine["nll_nats"] + noise * mine["num_tokens"]
        better = mine.assign(nll_nats=worse.where(mine["split"] == "test", mine["nll_nats"] * 0.9))
        if table == "document_scores":
            write_table(tmp_path, table, "tau=0-0", better)
        else:
            write_table(tmp_path, table, "tau=0-0", mine.assign(nll_nats=mine["nll_nats"] * 1.1))
    answer = paragraph(write_report(tmp_path).read_text())
    assert "includes 0: the test documents do not show a difference" in answer


@pytest.mark.parametrize(("tau", "said"), [(0.0, "one model per task"), (1_000.0, "the best"), (100.0, None)])
def test_the_best_or_a_baseline_at_the_cap_is_a_warning(tmp_path: Path, tau: float, said: str | None):
    write_run(tmp_path)
    write_trial(tmp_path, tau, stopped_by="max_epochs", best_epoch=30)
    page = write_report(tmp_path).read_text()
    assert ("Not converged" in page) == (said is not None)
    if said:
        assert f"still have been improving: τ = {tau_text(tau)} ({said}). Raise" in page


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


@pytest.mark.parametrize(
    ("best", "said"), [(100.0, "the lowest value fitted above 0"), (1e4, "the highest finite value fitted")]
)
def test_the_best_tau_at_the_edge_of_the_finite_values_is_a_warning(tmp_path: Path, best: float, said: str):
    write_run(tmp_path)
    write_trial(tmp_path, best, nats=dict.fromkeys(SIZES, 2.7))
    page = write_report(tmp_path).read_text()
    assert f"τ = {tau_text(best)} is {said}" in page
    assert page.count("> **Note.**") == 1
