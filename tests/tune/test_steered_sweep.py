"""Sweeps on Ray that go on with more, and that another terminal stops or tells a value."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from sweeps import SMALL, finish, here, numbers, start, wait_for, workers

from bora_sweep.cli import main
from bora_sweep.runs.folder import config_of
from bora_sweep.runs.results import read_trial_row, trial_rows
from bora_sweep.runs.run_lock import DRIVER_FILE
from bora_sweep.tune.numbering import read_numbering

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ONE_SLOT = "ray.max_concurrent=1"


@pytest.fixture(scope="module")
def sources(corpus_file, model_folder) -> list[str]:
    return [f"data.path={corpus_file}", f"model.name={model_folder}", *SMALL, ONE_SLOT]


@pytest.mark.usefixtures("ray_here")
def test_a_sweep_that_is_extended_equals_one_of_as_many_values(sources, tmp_path):
    """Then seeds, a value and baselines are added, and what is there stays as it is."""
    run, few = tmp_path / "run", ["train.max_epochs=2"]
    code, output = here("sweep", *sources, *few, "search.num_trials=7", f"output={tmp_path / 'whole'}")
    assert code == 0, output
    code, output = here("sweep", *sources, *few, "search.num_trials=5", f"output={run}")
    assert code == 0, output
    code, output = here("sweep", "--resume", f"output={run}", "search.num_trials=7")
    assert code == 0, output
    assert "extended by 2 fits: 10 in all" in output
    assert config_of(run).search.num_trials == 7
    for name, table in numbers(run).items():
        pd.testing.assert_frame_equal(table, numbers(tmp_path / "whole")[name])

    before = trial_rows(run)
    more = ["search.taus=[300]", "search.baselines=[zero_shot,independent,shared,fine_tuned]", "search.seeds=2"]
    code, output = here("sweep", "--resume", f"output={run}", *more)
    assert code == 0, output
    assert "extended by 14 fits: 24 in all" in output
    rows = {row["trial_id"]: row for row in trial_rows(run)}
    assert [rows[row["trial_id"]] for row in before] == before
    assert len(rows) == 24
    assert {row["status"] for row in rows.values()} == {"finished"}
    for number in range(10):
        one, other = rows[f"{number:03d}"], rows[f"{number:03d}-1"]
        assert (one["method"], one["tau"], one["seed"], other["seed"]) == (other["method"], other["tau"], 0, 1)
    assert (rows["010"]["method"], rows["010-1"]["started_from"]) == ("fine_tuned", "002-1")
    assert (rows["011"]["tau"], rows["011-1"]["seed"]) == (300, 1)
    code, output = here("sweep", "--resume", f"output={run}", "search.num_trials=4")
    assert (code, "search.num_trials=4: the run has 7" in output) == (2, True), output
    assert config_of(run).search.num_trials == 7


@pytest.mark.usefixtures("ray_here")
def test_a_baseline_at_the_best_tau_is_fitted_anew_at_the_best_tau_of_the_extension(sources, tmp_path):
    run, baselines = tmp_path / "run", "search.baselines=[independent,shared,pfedme]"
    code, output = here("sweep", *sources, baselines, "search.num_trials=0", "search.taus=[1e5]", f"output={run}")
    assert code == 0, output
    before = {row["trial_id"]: row for row in trial_rows(run)}
    assert before["002"]["tau"] == 1e5
    code, output = here("sweep", "--resume", f"output={run}", "search.taus=[1e5,100]")
    assert code == 0, output
    rows = {row["trial_id"]: row for row in trial_rows(run)}
    is_better = rows["004"]["validation_nll_nats"] < rows["003"]["validation_nll_nats"]
    assert is_better
    assert "trial 002 (pfedme) was fitted at tau = 100000, the best before; it is fitted anew at tau = 100" in output
    assert rows.pop("002")["tau"] == 100
    assert {name: rows[name] for name in before if name != "002"} == {n: r for n, r in before.items() if n != "002"}


def running(run: Path, trial: str) -> Callable[[], bool]:
    """Whether the trial has ended an epoch and goes on."""

    def look() -> bool:
        row = read_trial_row(run, trial)
        return row is not None and row["status"] == "running" and row["epochs"] >= 1

    return look


def has_ended(run: Path, trial: str) -> Callable[[], bool]:
    def look() -> bool:
        row = read_trial_row(run, trial)
        return row is not None and row["status"] == "finished"

    return look


def test_fits_are_stopped_and_a_value_is_tried_and_the_sweep_is_stopped_and_resumed(sources, tmp_path, capsys):
    run = tmp_path / "run"
    endless = ["train.max_epochs=100000", "train.patience=100000", "search.num_trials=2"]
    process = start("sweep", *sources, *endless, "output=run", cwd=tmp_path)
    wait_for(running(run, "001"), process)
    assert main(["try", str(run), "tau=300"]) == 0
    assert main(["try", str(run), "tau=300"]) == 2
    assert main(["status", str(run)]) == 0
    assert "queued: tau = 300" in " ".join(capsys.readouterr().out.split())
    assert main(["stop", str(run), "--trial", "001"]) == 0
    wait_for(running(run, "003"), process)
    stopped = read_trial_row(run, "001")
    assert stopped is not None
    assert (stopped["status"], stopped["stopped_by"]) == ("finished", "user")
    assert stopped["best_epoch"] <= stopped["epochs"]
    assert "stopped by the user in epoch" in stopped["notes"]
    assert not (run / "trials" / "001" / "stop-asked").exists()
    assert list(run.glob("try-*")) == []
    assert main(["stop", str(run), "--trial", "003"]) == 0
    wait_for(running(run, "002"), process)
    assert main(["status", str(run)]) == 0
    assert "001 0 0 stopped" in " ".join(capsys.readouterr().out.split())
    assert main(["stop", str(run)]) == 0
    code, output = finish(process)
    assert code == 130, output
    assert "--resume output=" in output
    before = {row["trial_id"]: row for row in trial_rows(run)}
    assert [(row["status"], row["tau"]) for row in before.values()][1:] == [
        ("finished", 0.0),
        ("interrupted", float("inf")),
        ("finished", 300.0),
    ]

    process = start("sweep", "--resume", "output=run", cwd=tmp_path)
    for trial in ("002", "004", "005"):
        wait_for(running(run, trial), process)
        assert main(["stop", str(run), "--trial", trial]) == 0
        wait_for(has_ended(run, trial), process)
    code, output = finish(process)
    assert code == 0, output
    rows = {row["trial_id"]: row for row in trial_rows(run)}
    assert len(rows) == read_numbering(run, config_of(run)).num_fits(config_of(run)) == 6
    assert [rows["001"], rows["003"]] == [before["001"], before["003"]]
    assert {row["stopped_by"] for name, row in rows.items() if name != "000"} == {"user"}
    assert (rows["004"]["tau"], rows["005"]["tau"]) == pytest.approx((10**1.25, 10**3.75))
    assert json.loads(rows["002"]["config_json"])["search"]["num_trials"] == 2
    capsys.readouterr()
    assert main(["stop", str(run), "--trial", "005"]) == 2
    assert "no process works on it" in capsys.readouterr().err


@pytest.mark.parametrize("asked_by", ["stop", "Ctrl-C"])
def test_a_sweep_that_is_stopped_in_its_range_test_begins_no_trial(sources, tmp_path, asked_by):
    run = tmp_path / "run"
    process = start("sweep", *sources, "train.learning_rate=auto", "output=run", cwd=tmp_path)
    if asked_by == "stop":
        wait_for((run / DRIVER_FILE).exists, process)
        assert main(["stop", str(run)]) == 0
    else:
        wait_for(lambda: workers(process.pid, "with_measured"), process)
        process.send_signal(signal.SIGINT)
    code, output = finish(process)
    assert code == 130, output
    assert ("stopping after this step" in output) == (asked_by == "Ctrl-C")
    assert "--resume output=" in output
    assert config_of(run).train.learning_rate == "auto"
    assert trial_rows(run) == []
