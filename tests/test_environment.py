"""What is left in a process's environment by others changes no number, and keeps nothing waiting."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from sweeps import SMALL, finish, here, numbers, outside
from tiny import make_base, make_corpus

from bora_sweep.cli import main
from bora_sweep.config import load_config
from bora_sweep.runs.folder import create_run
from bora_sweep.runs.results import read_results, trial_rows
from bora_sweep.train.device import make_accelerator
from bora_sweep.train.distributed import process_group
from bora_sweep.train.fit import fit
from bora_sweep.tune.ray_folder import LONGEST_SOCKET, ensure_auth_token, ray_folder, refuse_shadowing_files
from bora_sweep.tune.tuner import earlier_trials, mark_failed

LEFT = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
OF_ACCELERATE = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_TORCH_DEVICE": "meta",
    "ACCELERATE_USE_FSDP": "true",
}
OF_MPI = {"PMI_SIZE": "2", "OMPI_COMM_WORLD_SIZE": "2", "PMI_RANK": "1", "MPI_LOCALRANKID": "1"}
FIT = ["train.device=cpu", "lora.rank=2", "train.max_epochs=1", "prior.tau=10", "train.learning_rate=0.02"]


@pytest.fixture
def left(monkeypatch):
    """Variables of launchers that started something else."""
    for name, value in (LEFT | OF_ACCELERATE | OF_MPI).items():
        monkeypatch.setenv(name, value)


def test_variables_of_launchers_and_of_accelerate_change_no_fit(request):
    clean = fit(load_config(FIT), make_corpus(), make_base())
    request.getfixturevalue("left")
    before = dict(os.environ)
    accelerator = make_accelerator(load_config(FIT))
    assert (accelerator.gradient_accumulation_steps, accelerator.num_processes) == (1, 1)
    assert (accelerator.device.type, accelerator.mixed_precision) == ("cpu", "no")
    done = fit(load_config(FIT), make_corpus(), make_base())
    torch.testing.assert_close(done.theta_KP, clean.theta_KP, rtol=0, atol=0)
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("found", "settings", "says"),
    [
        (LEFT, [], "RANK=0 WORLD_SIZE=2 .*ray.workers_per_trial=1; .*unset RANK"),
        (LEFT | {"RANK": "1"}, [], "RANK=1 .*unset RANK"),
        (LEFT | {"WORLD_SIZE": "two"}, [], "WORLD_SIZE=two.*not a rank of that many"),
        (LEFT | {"RANK": "2"}, [], "RANK=2.*not a rank of that many"),
        (LEFT, ["ray.workers_per_trial=3"], "ray.workers_per_trial=3; .*set ray.workers_per_trial=2"),
        (LEFT | {"MASTER_PORT": "no"}, ["ray.workers_per_trial=2"], "2 processes did not meet"),
        (LEFT | OF_ACCELERATE, ["ray.workers_per_trial=2"], "ACCELERATE_USE_FSDP=true"),
    ],
)
def test_a_launcher_that_is_not_there_is_named_and_not_waited_for(
    found, settings, says, monkeypatch, tmp_path, capsys, corpus_file, model_folder
):
    monkeypatch.chdir(tmp_path)
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    code = main(["fit", f"data.path={corpus_file}", f"model.name={model_folder}", *settings])
    said = " ".join(capsys.readouterr().err.split())
    assert code == 2
    assert said.count("error:") == 1
    assert re.search(says, said), said
    assert not list(tmp_path.iterdir())


def test_those_that_were_started_and_do_not_come_are_waited_for_a_while(monkeypatch):
    for name, value in (LEFT | {"MASTER_PORT": "0"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(process_group, "MEETING", process_group.timedelta(seconds=1))
    with pytest.raises(process_group.InputError, match="2 processes did not meet"), process_group.joined_processes():
        pass
    assert process_group.count() == 1


@pytest.fixture
def run(tmp_path) -> Path:
    """One that has just begun."""
    create_run(load_config(), tmp_path / "run")
    return tmp_path / "run"


def test_a_trial_whose_worker_died_before_its_first_row_has_failed(run, capsys):
    config = load_config(["search.num_trials=1"])
    point = {"number": 3, "tau": 10.0}
    params = {"trial_id": "003", "point": point, "seed_index": 0, "start": None}
    mark_failed(run, config, params, RuntimeError("The actor died"))
    (row,) = trial_rows(run)
    assert (row["status"], row["error"], row["tau"]) == ("failed", "RuntimeError: The actor died", 10.0)
    assert not earlier_trials(run)["003"].finished
    assert len(read_results(run).trials) == 1
    assert main(["status", str(run)]) == 0
    assert main(["report", str(run)]) == 2
    printed = capsys.readouterr()
    assert "1 failed" in printed.out
    assert "Traceback" not in printed.err


@pytest.mark.parametrize("named", ["TMPDIR", "RAY_TMPDIR"])
def test_ray_is_given_a_folder_in_which_its_sockets_can_be(named, monkeypatch, tmp_path):
    """Where the user's cannot hold them there is another; but what was named for Ray itself is refused."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    (tmp_path / "a file").write_text("")
    for place in (tmp_path / ("a" * (108 - len(LONGEST_SOCKET))), "/proc", tmp_path / "a file", "/dev/full"):
        monkeypatch.setenv(named, str(place))
        if named == "RAY_TMPDIR":
            with (
                pytest.raises(process_group.InputError, match=r"RAY_TMPDIR=/.*Ray cannot keep its files there"),
                ray_folder(),
            ):
                pass
            continue
        with ray_folder() as folder:
            own = Path(folder).parent
            assert own.stat().st_mode & 0o777 == 0o700
            assert len(f"{own}/{LONGEST_SOCKET}") <= 107
        assert not own.exists()


def test_the_users_folder_is_taken_where_it_can_be(monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with ray_folder() as shortest:
        pass
    monkeypatch.chdir(Path(shortest).parent)
    monkeypatch.setenv("TMPDIR", ".")
    with ray_folder() as folder:
        assert folder == shortest


def test_files_that_workers_would_import_in_place_of_modules_are_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").mkdir()  # without __init__.py it hides nothing
    (tmp_path / "speeches.py").write_text("")
    refuse_shadowing_files()
    (tmp_path / "random.py").write_text("raise RuntimeError")
    with pytest.raises(
        process_group.InputError, match=r"/random\.py: Ray's workers would import it in place of .*rename it"
    ):
        refuse_shadowing_files()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_a_terminal_cannot_show_is_escaped(encoding, run):
    own = os.environ | {"PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "bora_sweep.cli", "status", str(run)]
    done = subprocess.run(command, env=own, capture_output=True, check=True)
    assert b"0 of" in done.stdout
    done = subprocess.run([sys.executable, "-m", "bora_sweep.cli", "status", "τ"], env=own, capture_output=True)
    assert done.returncode == 2
    assert b"\\u03c4: not a run" in done.stderr


@pytest.mark.parametrize("home", ["/proc", "home"])
def test_rays_secret_is_in_the_environment_where_no_home_can_keep_it(home, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / home))
    (tmp_path / "home").mkdir()
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    ensure_auth_token()
    assert len(os.environ.pop("RAY_AUTH_TOKEN", "")) == (64 if home == "/proc" else 0)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_a_sweep_started_in_a_spoilt_environment_is_one_started_in_a_clean_one(corpus_file, model_folder, tmp_path):
    """By `uv run`, whose hook in Ray would ship this folder; beside a Ray elsewhere, a launcher, a home of nobody's."""
    arguments = [f"data.path={corpus_file}", f"model.name={model_folder}", *SMALL, "train.max_epochs=1"]
    arguments += ["search.num_trials=0", "search.baselines=[independent,shared]"]
    code, output = here("sweep", *arguments, f"output={tmp_path / 'clean'}")
    assert code == 0, output
    project = tmp_path / "project"
    (project / "below").mkdir(parents=True)
    (project / "pyproject.toml").write_text("")
    long = tmp_path / ("a" * 108)
    long.mkdir()
    command = [sys.executable, "-m", "bora_sweep.cli", "sweep", *arguments, "output=out"]
    (project / "below" / "run").write_text(subprocess.list2cmdline(command).replace("[", "'[").replace("]", "]'"))
    spoilt = {"TMPDIR": str(long), "HOME": "/proc", "MPLCONFIGDIR": str(tmp_path), "RAY_ADDRESS": "127.0.0.1:1"}
    bash = shutil.which("bash")
    with subprocess.Popen(
        ["uv", "run"], executable=bash, cwd=project / "below", stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env=outside() | LEFT | OF_ACCELERATE | OF_MPI | spoilt,
    ) as process:  # fmt: skip
        code, output = finish(process)
    assert code == 0, output
    for name, table in numbers(project / "below" / "out").items():
        pd.testing.assert_frame_equal(table, numbers(tmp_path / "clean")[name])
