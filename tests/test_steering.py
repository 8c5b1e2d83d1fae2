"""`stop` and `try`: what they ask of a run, and each wrong input in one line."""

from pathlib import Path

import pytest
from sweeps import finish, start, wait_for

import bora_sweep
from bora_sweep.cli import main
from bora_sweep.config import load_config
from bora_sweep.errors import InputError
from bora_sweep.runs import run_lock as run_lock_module
from bora_sweep.runs.folder import create_run
from bora_sweep.runs.requests import STOP_FILE, STOP_TRIAL_FILE, asked_to_try
from bora_sweep.runs.results import read_trial_row, trial_rows, write_table
from bora_sweep.runs.run_lock import run_lock
from bora_sweep.tune.numbering import new_numbering, write_numbering
from bora_sweep.tune.points import Point


def put(run: Path, trial_id: str, status: str, tau: float, method: str = "map") -> None:
    config = load_config([f"prior.tau={tau}"]).to_json()
    row = {"status": status, "method": method, "tau": tau, "seed": 0, "config_json": config}
    write_table(run, "trials", trial_id, [row])


@pytest.fixture
def sweep(tmp_path) -> Path:
    """A sweep with a finished, a running and a failed fit, on which nobody works."""
    config = load_config(["search.taus=[20,150.5]"])
    create_run(config, tmp_path)
    write_numbering(tmp_path, new_numbering(config).with_points([Point(-1, 7.5)], 0))
    for trial_id, status, tau in (("001", "finished", 0.0), ("005", "running", 77.25), ("006", "failed", 3.0)):
        put(tmp_path, trial_id, status, tau)
    return tmp_path


def one_line(capsys, *arguments: str) -> str:
    """The message of a refused command."""
    assert main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_requests_are_files_that_name_what_is_asked(sweep, capsys):
    with run_lock(sweep):
        assert main(["stop", str(sweep), "--trial", "005"]) == 0
        assert main(["try", str(sweep), "tau=1e3"]) == 0
        bora_sweep.try_tau(sweep, 0.1 + 0.2)
        assert (sweep / "trials" / "005" / STOP_TRIAL_FILE).exists()
        assert [tau for _, tau in asked_to_try(sweep)] == [1000, 0.1 + 0.2]
        capsys.readouterr()
        assert main(["status", str(sweep)]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "005 77.25 0 stopping" in text
        assert "queued: tau = 1000, 0.3" in text
        assert "1 of 14 trials finished, 1 stopping, 1 failed, 11 waiting" in text
        assert not (sweep / STOP_FILE).exists()
        bora_sweep.stop(sweep)
        assert (sweep / STOP_FILE).exists()


def test_a_request_of_an_earlier_start_is_gone_and_one_that_comes_when_the_run_has_a_driver_stays(sweep, monkeypatch):
    (sweep / STOP_FILE).write_text("")
    written, write = [], run_lock_module.write_bytes

    def write_and_stop(file, content) -> None:
        write(file, content)
        written.append((sweep / STOP_FILE).exists())
        bora_sweep.stop(sweep)  # as early as there is a process to stop

    monkeypatch.setattr(run_lock_module, "write_bytes", write_and_stop)
    with run_lock(sweep):
        assert written == [False]
        assert (sweep / STOP_FILE).exists()


def test_files_that_ask_for_no_value_that_can_be_fitted_are_passed_over(sweep):
    for number, tau in enumerate(["-5", "0", "NaN", "Infinity", "-Infinity", '"x"', "null", "[2]", "2.5"]):
        (sweep / f"try-{number}.json").write_text(f'{{"tau": {tau}}}')
    assert [tau for _, tau in asked_to_try(sweep)] == [2.5]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("tau=-3", "tau=-3: need a value above 0"),
        ("tau=nan", "tau=nan: need a value above 0"),
        ("tau=many", "tau=many: need a number as in tau=300"),
        ("tau=", "tau=: need a number as in tau=300"),
        ("lr=3", "lr=3: need a number as in tau=300"),
        ("300", "300: need a number as in tau=300"),
        ("tau=0", "tau=0: every sweep has it, as its baseline independent"),
        ("tau=inf", "tau=inf: every sweep has it, as its baseline shared"),
        ("tau=77.25", "has it already, as trial 005"),
        ("tau=150.5", "will fit it, as search.taus names it"),
        ("tau=7.5", "will fit it, as search.taus names it, or an earlier try"),
        ("tau=9", "is queued in"),
    ],
)
def test_a_value_that_cannot_be_tried_is_refused_in_one_line(value, message, sweep, capsys):
    with run_lock(sweep):
        bora_sweep.try_tau(sweep, 9)
        assert message in one_line(capsys, "try", sweep, value)
        assert [tau for _, tau in asked_to_try(sweep)] == [9]


def test_a_sweep_on_which_nobody_works_is_refused_with_the_command_that_extends_it(sweep, capsys):
    line = one_line(capsys, "try", sweep, "tau=300")
    assert f"bora-sweep sweep --resume output={sweep} 'search.taus=[20,150.5,300]'" in line
    assert asked_to_try(sweep) == []


def test_only_a_search_takes_values(tmp_path, capsys):
    create_run(load_config(["search.mode=path"]), tmp_path)
    with run_lock(tmp_path):
        assert "a path chooses its own values" in one_line(capsys, "try", tmp_path, "tau=300")
    put(tmp_path, "fit", "running", 5.0)
    with run_lock(tmp_path, "fit"):
        assert "which has one tau; only a sweep takes further values" in one_line(capsys, "try", tmp_path, "tau=300")
    assert "which has one tau" in one_line(capsys, "try", tmp_path, "tau=300")
    assert "not a run's folder" in one_line(capsys, "try", tmp_path / "none", "tau=300")


def test_what_cannot_be_stopped_is_refused_in_one_line(sweep, capsys):
    for arguments in ((), ("--trial", "005")):
        assert "no process works on it" in one_line(capsys, "stop", sweep, *arguments)
    with run_lock(sweep):
        for trial, message in {
            "009": "no trial of this name has begun in",
            "../../005": "no trial of this name has begun in",
            "001": "is finished in",
            "006": "is failed in",
        }.items():
            line = one_line(capsys, "stop", sweep, "--trial", trial)
            assert message in line
            assert "005" in line
    assert not list(sweep.rglob("stop*"))
    assert "not a run's folder" in one_line(capsys, "stop", sweep / "none")
    with pytest.raises(InputError, match="no process works on it"):
        bora_sweep.stop(sweep)


@pytest.mark.slow
def test_a_fit_is_stopped_and_resumed_and_then_ended_with_its_best_epoch(corpus_file, model_folder, tmp_path):
    run = tmp_path / "run"
    settings = [f"data.path={corpus_file}", f"model.name={model_folder}", "model.max_tokens=16", "lora.rank=2"]
    endless = ["train.max_epochs=100000", "train.patience=100000", "train.device=cpu", "output=run"]

    def runs() -> bool:
        row = read_trial_row(run, "fit")
        return row is not None and row["status"] == "running" and row["epochs"] >= 1

    process = start("fit", *settings, *endless, cwd=tmp_path)
    wait_for(runs, process)
    assert main(["stop", str(run)]) == 0
    code, output = finish(process)
    assert (code, "--resume output=" in output) == (130, True), output
    (row,) = trial_rows(run)
    assert row["status"] == "interrupted"
    process = start("fit", "--resume", "output=run", cwd=tmp_path)
    wait_for(lambda: runs() and (read_trial_row(run, "fit") or {})["epochs"] > row["epochs"], process)
    assert main(["stop", str(run), "--trial", "fit"]) == 0
    code, output = finish(process)
    assert code == 0, output
    (row,) = trial_rows(run)
    assert (row["status"], row["stopped_by"]) == ("finished", "user")
    assert not list(run.rglob("stop*"))
