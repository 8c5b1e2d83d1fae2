"""Sweeps whose fits span two processes each, on a Ray of their own: the numbers of one process, and no process left."""

import signal
import subprocess
from pathlib import Path

import pandas as pd
import psutil
import pytest
from test_sweep import finish, listening, start, wait_for

from bora_sweep.results import read_results, trial_rows

SMALL = [
    "model.max_tokens=16", "lora.rank=2", "train.learning_rate=0.02", "train.device=cpu", "search.baselines="
    "[independent,shared]", "search.num_trials=0", "search.taus=[20]",
]  # fmt: skip


@pytest.fixture(scope="module")
def sources(corpus_file, model_folder) -> list[str]:
    return [f"data.path={corpus_file}", f"model.name={model_folder}", *SMALL]


def members(process: subprocess.Popen) -> list[psutil.Process]:
    """The processes of trials beside their first, by the name that Ray gives an actor's process."""
    family = psutil.Process(process.pid).children(recursive=True)
    return [member for member in family if "_Member" in " ".join(member.cmdline())]


def same_numbers(run: Path, other: Path) -> None:
    one, two = (read_results(folder).trials.set_index("tau").sort_index() for folder in (run, other))
    assert one["status"].eq("finished").all()
    for name in ("epochs", "best_epoch", "train_tokens", "seed", "stopped_by"):
        pd.testing.assert_series_equal(one[name], two[name])
    for name in ("validation_nll_nats", "test_nll_nats"):
        assert one[name].to_numpy() == pytest.approx(two[name].to_numpy(), rel=1e-4)  # float32


def test_a_sweep_of_fits_on_two_processes_survives_the_death_of_one(sources, tmp_path):
    """The second process is killed in the midst of a trial; Tune takes it up from its checkpoint."""
    arguments = [*sources, "train.max_epochs=12", "train.patience=12"]
    code, output = finish(start("sweep", *arguments, "output=alone", cwd=tmp_path))
    assert code == 0, output
    two = ["ray.workers_per_trial=2", "ray.max_concurrent=1"]
    process = start("sweep", *arguments, *two, "output=run", cwd=tmp_path)
    run = tmp_path / "run"
    wait_for(lambda: any(row["tau"] == 20 and row["epochs"] >= 2 for row in trial_rows(run)), process)
    assert listening(process) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    family = psutil.Process(process.pid).children(recursive=True)
    (killed,) = members(process)
    killed.send_signal(signal.SIGKILL)
    code, output = finish(process)
    assert code == 0, output
    same_numbers(run, tmp_path / "alone")
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
