"""Sweeps that lose workers, nodes and drivers: each trial is there once, with the numbers of an undisturbed sweep.

Training steps pause a little (faults/sitecustomize.py), to leave time to kill something; numbers do not depend on it.
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
from sweeps import SMALL, finish, here, numbers, outside, start, under_way, wait_for, workers

from bora_sweep.runs.results import trial_rows
from bora_sweep.runs.run_lock import DRIVER_FILE
from bora_sweep.train.checkpoint import load_checkpoint
from bora_sweep.tune import LOOPBACK

pytestmark = [pytest.mark.ray, pytest.mark.fault, pytest.mark.usefixtures("ray_here")]

FAULTS = Path(__file__).resolve().parent / "faults"
GIB = 1 << 30
LONGER = ["train.batch_size=8", "train.max_epochs=5", "train.patience=5"]


@pytest.fixture(scope="module")
def sources(corpus_file, model_folder) -> list[str]:
    return [f"data.path={corpus_file}", f"model.name={model_folder}", *SMALL, *LONGER]


@pytest.fixture(scope="module")
def whole(ray_here, sources, tmp_path_factory) -> Path:  # noqa: ARG001
    """An undisturbed sweep."""
    run = tmp_path_factory.mktemp("whole") / "run"
    code, output = here("sweep", *sources, f"output={run}")
    assert code == 0, output
    return run


@pytest.fixture(scope="module")
def whole_fit(sources, tmp_path_factory) -> Path:
    """An undisturbed fit."""
    run = tmp_path_factory.mktemp("whole") / "fit"
    code, output = here("fit", *sources, f"output={run}")
    assert code == 0, output
    return run


@pytest.fixture
def faults(monkeypatch):
    """Sets the faults of training steps in the processes that a test starts: see faults/sitecustomize.py."""

    def set_faults(**settings: object) -> None:
        monkeypatch.setenv("PYTHONPATH", str(FAULTS), prepend=os.pathsep)
        monkeypatch.setenv("FAULTS", json.dumps(settings))

    return set_faults


@pytest.fixture
def cluster(faults, tmp_path):
    """A head and two nodes, on loopback alone, whose workers pause before each step."""
    faults(pause=0.1)
    with subprocess.Popen(
        [sys.executable, str(FAULTS / "nodes.py"), "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**outside(), "HOME": str(tmp_path)},
    ) as process:
        yield json.loads(process.stdout.readline())
        process.stdin.close()
        process.wait(60)


def assert_same_numbers(run: Path, whole: Path) -> None:
    for name, table in numbers(run).items():
        pd.testing.assert_frame_equal(table, numbers(whole)[name])


def living_names(processes: list[psutil.Process]) -> set[str]:
    """The names of those that live."""
    living = set()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                living.add(process.name())
    return living


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def test_killed_workers_resume_and_a_second_driver_is_refused(sources, whole, faults, tmp_path):
    faults(pause=0.1)
    run = tmp_path / "run"
    process = start("sweep", *sources, "output=run", cwd=tmp_path)
    wait_for(lambda: under_way(run), process)
    time.sleep(random.random())
    kill(workers(process.pid))
    code, output = here("sweep", "--resume", f"output={run}")
    assert code == 2, output
    assert f"process {process.pid} on" in output
    code, output = finish(process)
    assert code == 0, output
    assert max(row["attempts"] for row in trial_rows(run)) == 2
    assert_same_numbers(run, whole)


def test_a_sweep_on_two_nodes_survives_the_loss_of_one(sources, whole, cluster, tmp_path):
    run = tmp_path / "run"
    process = start("sweep", *sources, f"ray.address={cluster['address']}", "output=run", cwd=tmp_path, **LOOPBACK)
    busy = []

    def all_busy_nodes_are_under_way() -> bool:  # the worker of one node may start much later than the other's
        busy[:] = [pid for pid in cluster["raylets"] if workers(pid, "ImplicitFunc.train")]
        return 0 < len(busy) == len(under_way(run))

    wait_for(all_busy_nodes_are_under_way, process)
    raylet = psutil.Process(busy[0])
    kill([*raylet.children(recursive=True), raylet])  # a machine that ends takes its workers with it
    code, output = finish(process)
    assert code == 0, output
    assert max(row["attempts"] for row in trial_rows(run)) == 2
    assert (run / "report" / "report.md").exists()
    assert_same_numbers(run, whole)


def test_a_driver_killed_twice_once_with_its_whole_cluster_is_resumed(sources, whole, faults, tmp_path):
    faults(pause=0.1)
    run = tmp_path / "run"
    process = start("sweep", *sources, "output=run", cwd=tmp_path)
    wait_for(lambda: sum(row["status"] == "finished" for row in trial_rows(run)) >= 2, process)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    deadline = time.monotonic() + 30
    while others := living_names(family) - {"ray::RuntimeEnvAgent", "ray::DashboardAgent"}:  # these end a minute later
        assert time.monotonic() < deadline, others
        time.sleep(0.2)
    kill(family)
    before = {row["trial_id"]: row for row in trial_rows(run)}

    process = start("sweep", "--resume", "output=run", cwd=tmp_path)
    wait_for(lambda: len(under_way(run)) > 0 and (run / DRIVER_FILE).exists(), process)
    kill([*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)])
    finish(process)

    code, output = here("sweep", "--resume", f"output={run}")
    assert code == 0, output
    for row in trial_rows(run):
        earlier = before.get(row["trial_id"])
        if earlier is not None and earlier["status"] == "finished":
            assert row == earlier  # not run again
    assert_same_numbers(run, whole)


def test_trials_that_crash_hang_or_are_killed_fail_and_the_sweep_goes_on(sources, faults, tmp_path):
    died = tmp_path / "died"
    faults(**{"raise": [7.0], "hang": [8.0], "die": [9.0], "reset": [6.0, str(died)]})
    tries = ["search.taus=[6,7,8,9]", "search.num_trials=1", "ray.max_failures=1", "ray.trial_timeout=10"]
    code, output = finish(start("sweep", *sources, *tries, "output=run", cwd=tmp_path))
    assert code == 1, output
    rows = {row["tau"]: row for row in trial_rows(tmp_path / "run")}
    assert {tau for tau, row in rows.items() if row["status"] == "failed"} == {7.0, 8.0, 9.0}
    assert all(rows[tau]["attempts"] == 2 for tau in (7.0, 8.0, 9.0))
    assert "RuntimeError: no luck at 7" in rows[7.0]["error"]
    assert "no step for 10 s" in rows[8.0]["error"]
    assert "sitecustomize.py" in rows[8.0]["error"]
    assert "worker" in rows[9.0]["error"].lower()
    assert died.exists()  # between two trials: the second is begun again
    for tau in (7.0, 8.0, 9.0):
        assert f"trial {rows[tau]['trial_id']} failed" in output
    assert sum(row["status"] == "finished" for row in rows.values()) == len(rows) - 3
    assert (tmp_path / "run" / "report" / "report.md").exists()


def test_a_trial_killed_by_rays_memory_monitor_resumes_with_fewer_documents_in_a_pass(
    sources, whole, faults, monkeypatch, tmp_path
):
    """By Ray's own monitor, whose threshold is set to a little more than what is in use now."""
    memory = psutil.virtual_memory()
    if memory.available < 8 * GIB:
        pytest.skip("needs 8 GiB of free memory")
    monkeypatch.setenv("RAY_memory_usage_threshold", str((memory.total - memory.available + 3 * GIB) / memory.total))
    tau = next(row["tau"] for row in trial_rows(whole) if row["method"] == "map" and 0 < row["tau"] < float("inf"))
    faults(eat=[tau, 4, 6 * GIB])
    one = ["search.num_trials=0", f"search.taus=[{tau!r}]", "ray.max_concurrent=1", "ray.max_failures=5"]
    code, output = finish(start("sweep", *sources, *one, "output=run", cwd=tmp_path))
    assert code == 0, output
    killed, same = (next(row for row in trial_rows(run) if row["tau"] == tau) for run in (tmp_path / "run", whole))
    assert killed["attempts"] >= 2
    assert killed["notes"].startswith("killed for its memory with 8 documents in a forward pass; went on with ")
    assert killed["test_nll_nats"] == pytest.approx(same["test_nll_nats"], rel=1e-4)  # float32
    assert not list((tmp_path / "run" / "trials").glob("*/killed*"))


@pytest.mark.parametrize(
    "kind",
    [pytest.param(signal.SIGINT, id="ctrl-c", marks=pytest.mark.slow), pytest.param(signal.SIGTERM, id="sigterm")],
)
def test_a_signal_within_an_epoch_leaves_a_checkpoint_of_that_step(kind, sources, whole_fit, faults, tmp_path):
    faults(pause=0.25)
    run = tmp_path / "cut"
    process = start("fit", *sources, "output=cut", cwd=tmp_path)
    wait_for(lambda: list(run.glob("trials/fit/checkpoint-*")), process)
    time.sleep(0.6)
    before = {path.name for path in run.glob("trials/fit/checkpoint-*")}
    process.send_signal(kind)
    code, output = finish(process)
    assert code == 130, output
    assert "--resume output=cut" in output
    _, progress, _ = load_checkpoint(run / "trials" / "fit")
    assert progress["state"]["batch"] > 0
    newest = max(run.glob("trials/fit/checkpoint-*"))
    assert newest.name not in before
    if kind is signal.SIGTERM:  # and the disk flipped a bit of it
        content = bytearray(newest.read_bytes())
        content[-1] ^= 1
        newest.write_bytes(content)
    code, output = here("fit", "--resume", f"output={run}")
    assert code == 0, output
    (row,) = trial_rows(run)
    assert (newest.name in (row["notes"] or "")) == (kind is signal.SIGTERM)
    cut, whole = numbers(run), numbers(whole_fit)
    for name in ("curves", "task_scores", "document_scores"):
        pd.testing.assert_frame_equal(cut[name], whole[name])
