"""Trials pooled into settings: seeds by sums, candidates chosen on validation."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_runs import SIZES, table_after, write_run, write_trial

from bora_sweep.errors import InputError
from bora_sweep.report import analyse, write_report
from bora_sweep.report.stats.pool_trials import summarise
from bora_sweep.report.text.tables import split_table
from bora_sweep.runs.results import read_results, write_table


def test_seeds_are_pooled_by_sums(tmp_path: Path):
    for seed in (0, 1):
        write_trial(tmp_path, 100.0, seed=seed)
    results = read_results(tmp_path)
    rows = results.task_scores[results.task_scores["split"] == "test"]
    summary = summarise(results)
    (setting,), scores = summary.settings, summary.chosen_by
    assert setting.seeds == 2
    assert scores.test_M[0] == pytest.approx(math.exp(rows["nll_nats"].sum() / rows["num_tokens"].sum()))
    by_task: Any = rows.groupby("task")[["nll_nats", "num_tokens"]].sum()
    macro = np.exp(by_task["nll_nats"] / by_task["num_tokens"]).mean()
    assert analyse(summary).macro(0).estimate == pytest.approx(macro)
    assert split_table(summary).rows[0][1] == str(sum(SIZES.values()))
    assert "| **2** | **30–31 (25)** |" in write_report(tmp_path).read_text()


def test_a_median_between_two_counts_is_shown_with_its_half(tmp_path: Path):
    write_trial(tmp_path, 100.0, sizes={"ada": 18, "bo": 19})
    assert split_table(summarise(read_results(tmp_path))).rows[0][3:] == ["18", "18.5", "19"]
    assert "from 18 to 19, median 18.5" in write_report(tmp_path).read_text()


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
    assert summary.settings[summary.chosen_by.test_M.argmin()].tau == 100


def test_one_tau_fitted_in_several_ways_is_judged_on_validation(tmp_path: Path):
    write_run(tmp_path)
    write_trial(tmp_path, 100.0, nats=dict.fromkeys(SIZES, 9.0), trial_id="diverged", learning_rate=1.0)
    page = write_report(tmp_path).read_text()
    assert [row[:2] for row in table_after(page, "## Table 1")[1:]].count(["100", "0.003"]) == 1
    assert "more than one learning rate, alpha, parametrization or solver: τ = 100." in page


def test_a_finished_trial_without_scores_is_named(tmp_path: Path):
    write_run(tmp_path)
    (tmp_path / "results" / "document_scores" / "tau=inf-0.parquet").unlink()
    with pytest.raises(InputError, match=r"tau=inf-0 has finished, but results/document_scores/tau=inf-0\.parquet"):
        write_report(tmp_path)


def test_runs_are_read_together_and_other_documents_are_refused(tmp_path: Path):
    first = write_run(tmp_path / "a", taus=(0.0, 100.0))
    second = write_run(tmp_path / "b", taus=(math.inf,))
    assert write_report([first, second, first]) == first / "report" / "report.md"
    assert "below one model for all (τ = ∞)" in (first / "report" / "report.md").read_text()
    other = write_run(tmp_path / "c", taus=(1.0,), sizes=SIZES | {"bo": 30})
    with pytest.raises(InputError, match=r"trial tau=0-0: document '.*' of task 'bo' .* has no score"):
        write_report([first, other])


def test_no_finished_fit_is_the_users_to_know(tmp_path: Path):
    write_trial(tmp_path, None)
    write_table(tmp_path, "trials", "a", [{"status": "failed", "method": "map", "tau": 1.0}])
    with pytest.raises(InputError, match=r"no fit has finished yet \(trials: .*1 failed"):
        write_report(tmp_path)
    with pytest.raises(InputError, match="not a run's folder"):
        write_report(tmp_path / "nowhere")
