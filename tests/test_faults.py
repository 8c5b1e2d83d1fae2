"""What a sweep survives, each fault made for real: nothing lost, nothing doubled, the numbers those of a quiet run.

Steps pause a little (faults/sitecustomize.py), so that there is time to kill something; numbers do not depend on it.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from sweeps import SMALL, finish, numbers, start, wait_for

from bora_sweep.results import trial_rows
from bora_sweep.runs import DRIVER
from bora_sweep.train.checkpoint import load_checkpoint

FAULTS = Path(__file__).resolve().parent / "faults"
LONGER = ["train.batch_size=8", "train.max_epochs=5", "train.patience=5"]


@pytest.fixture(scope="module")
def sources(corpus_file, model_folder) -> list[str]:
    return [f"data.path={corpus_file}", f"model.name={model_folder}", *SMALL, *LONGER]


@pytest.fixture(scope="module")
def whole(sources, tmp_path_factory) -> Path:
    """A sweep that nothing disturbed."""
    cwd = tmp_path_factory.mktemp("whole")
    code, output = finish(start("sweep", *sources, "output=run", cwd=cwd))
    assert code == 0, output
    return cwd / "run"


@pytest.fixture
def bend(monkeypatch):
    """Set what is wrong with training steps in the processes that a test starts."""

    def bend(**faults: object) -> None:
        monkeypatch.setenv("PYTHONPATH", str(FAULTS))
        monkeypatch.setenv("FAULTS", json.dumps(faults))

    return bend


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A head and two nodes, on loopback alone."""
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    with subprocess.Popen(
        [sys.executable, str(FAULTS / "nodes.py"), "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HOME": str(tmp_path)},
    ) as process:
        yield json.loads(process.stdout.readline())
        process.stdin.close()
        process.wait(60)


def assert_as_if_nothing_had_happened(run: Path, whole: Path) -> None:
    for name, table in numbers(run).items():
        pd.testing.assert_frame_equal(table, numbers(whole)[name])


def workers(process: subprocess.Popen) -> list[psutil.Process]:
    """The processes in which trials run."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "ImplicitFunc" in " ".join(child.cmdline()):
                found.append(child)
    return found


def under_way(run: Path) -> list[dict]:
    return [row for row in trial_rows(run) if row["status"] == "running" and row["epochs"] >= 1]


def test_workers_killed_at_any_moment_resume_and_a_second_driver_is_refused(sources, whole, bend, tmp_path):
    bend(pause=0.1)
    run = tmp_path / "run"
    process = start("sweep", *sources, "output=run", cwd=tmp_path)
    wait_for(lambda: under_way(run), process)
    time.sleep(random.random())
    for worker in workers(process):
        worker.kill()
    code, output = finish(start("sweep", "--resume", "output=run", cwd=tmp_path))
    assert code == 2, output
    assert f"process {process.pid} on" in output
    code, output = finish(process)
    assert code == 0, output
    assert max(row["attempts"] for row in trial_rows(run)) == 2
    assert_as_if_nothing_had_happened(run, whole)


def test_a_lost_node_loses_no_trial(sources, whole, bend, cluster, tmp_path):
    bend(pause=0.1)
    run = tmp_path / "run"
    process = start("sweep", *sources, f"ray.address={cluster['address']}", "output=run", cwd=tmp_path)
    wait_for(lambda: under_way(run), process)
    os.kill(cluster["raylets"][0], signal.SIGKILL)
    code, output = finish(process)
    assert code == 0, output
    assert_as_if_nothing_had_happened(run, whole)


def test_the_driver_killed_twice_once_with_its_whole_cluster(sources, whole, bend, tmp_path):
    bend(pause=0.1)
    run = tmp_path / "run"
    process = start("sweep", *sources, "output=run", cwd=tmp_path)
    wait_for(lambda: sum(row["status"] == "finished" for row in trial_rows(run)) >= 2, process)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert {member.name() for member in alive} <= {"ray::RuntimeEnvAgent", "ray::DashboardAgent"}  # end a minute later
    for member in alive:
        member.kill()
    before = {row["trial_id"]: row for row in trial_rows(run)}

    process = start("sweep", "--resume", "output=run", cwd=tmp_path)
    wait_for(lambda: len(under_way(run)) > 0 and (run / DRIVER).exists(), process)
    for member in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        with contextlib.suppress(psutil.Error):
            member.kill()
    finish(process)

    code, output = finish(start("sweep", "--resume", "output=run", cwd=tmp_path))
    assert code == 0, output
    for row in trial_rows(run):
        earlier = before.get(row["trial_id"])
        if earlier is not None and earlier["status"] == "finished":
            assert row == earlier  # not run again
    assert_as_if_nothing_had_happened(run, whole)


def test_trials_that_crash_hang_or_are_killed_are_marked_and_the_sweep_goes_on(sources, bend, tmp_path):
    bend(**{"raise": [7.0], "hang": [8.0], "die": [9.0]})
    tries = ["search.taus=[7,8,9]", "search.num_trials=1", "ray.max_failures=1", "ray.trial_timeout=3"]
    code, output = finish(start("sweep", *sources, *tries, "output=run", cwd=tmp_path))
    assert code == 1, output
    rows = {row["tau"]: row for row in trial_rows(tmp_path / "run")}
    assert {tau for tau, row in rows.items() if row["status"] == "failed"} == {7.0, 8.0, 9.0}
    assert all(rows[tau]["attempts"] == 2 for tau in (7.0, 8.0, 9.0))
    assert "RuntimeError: no luck at 7" in rows[7.0]["error"]
    assert "no step for 3 s" in rows[8.0]["error"]
    assert "sitecustomize.py" in rows[8.0]["error"]
    assert "worker" in rows[9.0]["error"].lower()
    for tau in (7.0, 8.0, 9.0):
        assert f"trial {rows[tau]['trial_id']} failed" in output
    assert sum(row["status"] == "finished" for row in rows.values()) == len(rows) - 3
    assert (tmp_path / "run" / "report" / "report.md").exists()


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_signal_within_an_epoch_leaves_a_checkpoint_of_its_step(kind, sources, bend, tmp_path):
    assert finish(start("fit", *sources, "output=whole", cwd=tmp_path))[0] == 0
    bend(pause=0.25)
    run = tmp_path / "cut"
    process = start("fit", *sources, "output=cut", cwd=tmp_path)
    wait_for(lambda: list(run.glob("trials/fit/checkpoint-*")), process)
    time.sleep(0.6)
    process.send_signal(kind)
    started = time.monotonic()
    code, output = finish(process)
    assert time.monotonic() - started < 10
    assert code == 130, output
    assert "--resume output=cut" in output
    _, progress, _ = load_checkpoint(run / "trials" / "fit")
    assert progress["state"]["batch"] > 0
    bend()
    newest = max(run.glob("trials/fit/checkpoint-*"))
    if kind is signal.SIGTERM:  # and the disk bent a bit of it
        content = bytearray(newest.read_bytes())
        content[-1] ^= 1
        newest.write_bytes(content)
    code, output = finish(start("fit", "--resume", "output=cut", cwd=tmp_path))
    assert code == 0, output
    (row,) = trial_rows(run)
    assert (newest.name in (row["notes"] or "")) == (kind is signal.SIGTERM)
    cut, whole = numbers(run), numbers(tmp_path / "whole")
    for name in ("curves", "task_scores", "document_scores"):
        pd.testing.assert_frame_equal(cut[name], whole[name])
