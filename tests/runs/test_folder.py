"""The folder of a run: where it may be, which one is resumed, and that no other run is overwritten."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from bora_sweep.cli import main
from bora_sweep.config import load_config
from bora_sweep.errors import InputError
from bora_sweep.launch import claim_run
from bora_sweep.prepare import prepare_fit
from bora_sweep.runs.folder import config_of, create_run, reopen_run
from bora_sweep.runs.results import write_table


def test_the_newest_run_is_the_newest_of_those_that_were_named_by_the_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("2026-01-02T03-04-05-fit", "2026-01-02T03-04-06-fit", "zz-fit", "Copy of 2026-01-03T00-00-00-fit"):
        create_run(load_config([]), tmp_path / "runs" / name)
    assert str(reopen_run([], "fit")[1]) == "runs/2026-01-02T03-04-06-fit"


@pytest.mark.parametrize("output", ["there", "there/run", "/proc/run"])
def test_a_run_that_has_no_folder_is_refused_before_any_work(tmp_path, capfd, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").write_text("a file")
    assert main(["fit", f"output={output}"]) == 2
    assert f"output={output}: cannot be made or written to" in " ".join(capfd.readouterr().err.split())
    assert (tmp_path / "there").read_text() == "a file"


def test_a_runs_folder_below_an_equals_sign_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("tau=10/run", "output=b/run"):
        create_run(load_config(["prior.tau=7"]), Path(folder))
        config, run = reopen_run([f"output={folder}"], "fit")
        assert (config.prior.tau, run) == (7, Path(folder))


@pytest.mark.parametrize(("trial", "command", "other"), [("fit", "fit", "sweep"), ("000", "sweep", "fit")])
def test_a_run_is_resumed_by_the_command_that_began_it(trial, command, other, tmp_path):
    create_run(load_config([]), tmp_path)
    reopen_run([f"output={tmp_path}"], other)  # it has no trial yet
    write_table(tmp_path, "trials", trial, [{"trial_id": trial, "status": "finished"}])
    reopen_run([f"output={tmp_path}"], command)
    with pytest.raises(InputError, match=f"`{command}` began this run.*bora-sweep {command} --resume"):
        reopen_run([f"output={tmp_path}"], other)


def test_a_run_that_was_begun_meanwhile_is_not_taken_for_ones_own(corpus_file, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    console = Console(file=io.StringIO())
    settings = [f"data.path={corpus_file}", f"model.name={model_folder}", "output=run", "train.device=cpu"]
    prepared = prepare_fit(settings, False, console)
    create_run(load_config(["prior.tau=7"]), Path("run"))
    with pytest.raises(InputError, match="has just begun a run there"), claim_run(prepared, "fit", console):
        pass
    assert config_of(Path("run")).prior.tau == 7


def test_a_refused_resume_names_the_setting_that_was_given(tmp_path):
    """train.device=cpu also settles model.dtype=auto, which nobody has set."""
    create_run(load_config([]), tmp_path)
    with pytest.raises(InputError, match=r"^train\.device=cpu: the run was begun with auto"):
        reopen_run([f"output={tmp_path}", "train.device=cpu"], "fit")
