"""Folders that are no run, or a damaged or unfinished one: each command that reads runs prints one message."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from bora_sweep.cli import main
from bora_sweep.runs.results import FORMAT, FORMAT_KEY
from bora_sweep.train.checkpoint import load_adapters, save_adapters

SMALL = ["model.max_tokens=16", "lora.rank=2", "train.max_epochs=1", "train.device=cpu"]
COMMANDS = {
    "report": lambda run, _: ["report", run],
    "status": lambda run, _: ["status", run],
    "export": lambda run, out: ["export", run, out],
    "generate": lambda run, _: ["generate", run, "--task", "ann", "w1"],
}
commands = pytest.mark.parametrize("command", COMMANDS)


@pytest.fixture(scope="module")
def finished(corpus_file, model_folder, tmp_path_factory) -> Path:
    """The run of a finished fit."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    assert main(["fit", f"data.path={corpus_file}", f"model.name={model_folder}", *SMALL, f"output={run}"]) == 0
    return run


def call(command: str, run: Path, capsys) -> tuple[int, str]:
    """The exit code, and what the command printed: one message where it failed."""
    capsys.readouterr()
    code = main(COMMANDS[command](str(run), str(run.parent / "out")))
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("error:")]
    assert len(errors) == (code == 2)
    assert "Traceback" not in printed.err + printed.out
    assert not (run.parent / "out").exists() or command == "export"
    return code, printed.err if errors else printed.out


@commands
@pytest.mark.parametrize("kind", ["absent", "empty", "another", "file"])
def test_a_folder_that_is_no_run_is_refused(command, kind, tmp_path, capsys):
    run = tmp_path / "run"
    if kind in ("empty", "another"):
        run.mkdir()
    if kind == "another":
        (run / "results").mkdir()
        (run / "results" / "mine.csv").write_text("a,b\n")
    if kind == "file":
        run.write_text("no folder")
    code, message = call(command, run, capsys)
    assert code == 2
    assert f"{run}: not a run's folder" in message
    assert "give the folder that `bora-sweep fit` or `bora-sweep sweep` wrote" in message
    assert not (run / "report").exists()


@commands
@pytest.mark.parametrize("kind", ["no row", "first row half written"])
def test_a_run_without_results_has_a_status_and_is_refused_by_the_others(command, kind, finished, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(finished / "config.yaml", run)
    if kind != "no row":
        (run / "results" / "trials").mkdir(parents=True)
        (run / "results" / "trials" / ".fit.parquet.7.part").write_bytes(b"PAR1")
    code, message = call(command, run, capsys)
    assert code == (0 if command == "status" else 2)
    assert str(run) in message
    assert ("trials finished" if command == "status" else "no trial has begun yet") in message


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def rewrite_row(run: Path, **columns: object) -> None:
    """Change columns of its row of `trials`, or the format that the file names."""
    path = run / "results" / "trials" / "fit.parquet"
    table = pq.read_table(path)
    version = int(columns.pop("format", FORMAT))  # type: ignore[arg-type]
    for name, value in columns.items():
        place = table.column_names.index(name)
        table = table.set_column(place, table.schema.field(place), [[value]])
    pq.write_table(table.replace_schema_metadata({FORMAT_KEY: str(version)}), path)


@commands
def test_results_of_a_newer_version_are_refused(command, copy, capsys):
    rewrite_row(copy, format=FORMAT + 1)
    code, message = call(command, copy, capsys)
    assert code == 2
    assert f"fit.parquet: written by a newer bora_sweep (results format {FORMAT + 1}" in message


@commands
def test_a_damaged_table_is_refused(command, copy, capsys):
    (copy / "results" / "trials" / "fit.parquet").write_bytes(b"PAR1 and no more")
    code, message = call(command, copy, capsys)
    assert code == 2
    assert "fit.parquet: damaged" in message


@commands
def test_a_configuration_of_another_version_is_refused_where_it_is_needed(command, copy, capsys):
    """The report needs none; the others name the key that they do not know."""
    (copy / "config.yaml").write_text("prior:\n  sharing: 3\n")
    rewrite_row(copy, config_json=json.dumps({"prior": {"sharing": 3}}))
    code, message = call(command, copy, capsys)
    if command == "report":
        assert code == 0
        return
    assert code == 2
    assert "sharing" in message
    assert "another version of bora_sweep" in message


@commands
@pytest.mark.parametrize("kind", ["absent", "damaged", "another version"])
def test_adapters_that_cannot_be_read_are_refused_where_they_are_needed(command, kind, copy, capsys):
    path = copy / "trials" / "fit" / "adapters.safetensors"
    if kind == "absent":
        path.unlink()
    elif kind == "damaged":
        with safe_open(path, "pt") as opened:
            tensors = {name: opened.get_tensor(name) * 2 for name in opened.keys()}  # noqa: SIM118
            save_file(tensors, path, opened.metadata())
    else:
        tensors, about = load_adapters(path.parent)
        save_adapters(path.parent, tensors, about | {"lora": {"ranks": 2}})
    code, message = call(command, copy, capsys)
    if command in ("report", "status"):
        assert code == 0
        return
    assert code == 2
    words = {"absent": "has no adapters.safetensors", "damaged": "checksum", "another version": "another version"}
    assert words[kind] in message
    assert str(copy) in message
