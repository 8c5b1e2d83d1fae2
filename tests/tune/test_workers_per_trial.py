"""Fits that span two processes: they have the numbers of one process, and leave no process behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import psutil
import pytest
from sweeps import finish, here, listening, start, under_way, wait_for, workers

from bora_sweep.runs.results import read_results, trial_rows

pytestmark = pytest.mark.ray

SMALL = [
    "model.max_tokens=16", "lora.rank=2", "train.learning_rate=0.02", "train.device=cpu", "search.baselines="
    "[independent,shared]", "search.num_trials=0", "search.taus=[20]",
]  # fmt: skip


@pytest.fixture(scope="module")
def sources(corpus_file, model_folder) -> list[str]:
    return [f"data.path={corpus_file}", f"model.name={model_folder}", *SMALL]


def assert_same_numbers(run: Path, other: Path) -> None:
    one, two = (read_results(folder).trials.set_index("tau").sort_index() for folder in (run, other))
    assert one["status"].eq("finished").all()
    for name in ("epochs", "best_epoch", "train_tokens", "seed", "stopped_by"):
        pd.testing.assert_series_equal(one[name], two[name])
    for name in ("validation_nll_nats", "test_nll_nats"):
        assert one[name].to_numpy() == pytest.approx(two[name].to_numpy(), rel=1e-4)  # float32


@pytest.mark.fault
@pytest.mark.usefixtures("ray_here")
def test_a_sweep_with_two_workers_per_trial_survives_the_death_of_one(sources, tmp_path):
    """The second process is killed during a trial, and Tune resumes the trial from its checkpoint."""
    arguments = [*sources, "train.max_epochs=8", "train.patience=8"]
    code, output = here("sweep", *arguments, f"output={tmp_path / 'alone'}")
    assert code == 0, output
    two = ["ray.workers_per_trial=2", "ray.max_concurrent=1"]
    slow = {"PYTHONPATH": str(Path(__file__).parent / "faults"), "FAULTS": json.dumps({"pause": 0.3})}
    process = start("sweep", *arguments, *two, "output=run", cwd=tmp_path, **slow)
    run = tmp_path / "run"

    def has_a_checkpoint() -> bool:
        rows = [row for row in under_way(run) if row["tau"] == 20]
        return any(list((run / "trials" / row["trial_id"]).glob("checkpoint-*")) for row in rows)

    wait_for(has_a_checkpoint, process)
    assert listening(process) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    family = psutil.Process(process.pid).children(recursive=True)
    (killed,) = workers(process.pid, "GroupMember")
    killed.send_signal(signal.SIGKILL)
    code, output = finish(process)
    assert code == 0, output
    assert_same_numbers(run, tmp_path / "alone")
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive


@pytest.mark.slow
def test_accelerate_launches_a_fit_of_two_processes(sources, tmp_path):
    """Rank 0 alone prints; the same fit is refused as one process."""
    fit = ["-m", "bora_sweep.cli", "fit", *sources, "train.max_epochs=2", "ray.workers_per_trial=2", "output=run"]
    code, output = here(*fit[2:])
    assert (code, output.count("error:")) == (2, 1), output
    assert "set ray.workers_per_trial=1" in output
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    launched = subprocess.run(
        [sys.executable, *launch, *fit], cwd=tmp_path, capture_output=True, text=True, timeout=150,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout.count("test perplexity") == 1
    (row,) = trial_rows(tmp_path / "run")
    assert (row["status"], row["epochs"]) == ("finished", 2)
