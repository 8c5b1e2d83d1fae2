"""A folder that is no run, or only part of one: one message from each command that reads runs, and nothing broken."""

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
def whole(corpus_file, model_folder, tmp_path_factory) -> Path:
    """A fit that has ended."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["fit", f"data.path={corpus_file}", f"model.name={model_folder}", *SMALL, f"output={run}"]) == 0
    return run


def answer(command: str, run: Path, capsys) -> tuple[int, str]:
    """The exit code, and the one message."""
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
def test_what_is_no_run(command, kind, tmp_path, capsys):
    run = tmp_path / "run"
    if kind in ("empty", "another"):
        run.mkdir()
    if kind == "another":
        (run / "results").mkdir()
        (run / "results" / "mine.csv").write_text("a,b\n")
    if kind == "file":
        run.write_text("no folder")
    code, said = answer(command, run, capsys)
    assert code == 2
    assert f"{run}: not a run's folder" in said
    assert "give the folder that `bora-sweep fit` or `bora-sweep sweep` wrote" in said
    assert not (run / "report").exists()


@commands
@pytest.mark.parametrize("kind", ["begun", "first row half written"])
def test_a_run_that_has_no_result_yet(command, kind, whole, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(whole / "config.yaml", run)
    if kind != "begun":
        (run / "results" / "trials").mkdir(parents=True)
        (run / "results" / "trials" / ".fit.parquet.7.part").write_bytes(b"PAR1")
    code, said = answer(command, run, capsys)
    assert code == (0 if command == "status" else 2)
    assert str(run) in said
    assert ("0 of 11 trials finished" if command == "status" else "no trial has begun yet") in said


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def rewritten(run: Path, **columns: object) -> None:
    """Its row of `trials`, changed, or of another format."""
    path = run / "results" / "trials" / "fit.parquet"
    table = pq.read_table(path)
    found = int(columns.pop("format", FORMAT))  # type: ignore[arg-type]
    for name, value in columns.items():
        place = table.column_names.index(name)
        table = table.set_column(place, table.schema.field(place), [[value]])
    pq.write_table(table.replace_schema_metadata({FORMAT_KEY: str(found)}), path)


@commands
def test_results_of_a_newer_version(command, copy, capsys):
    rewritten(copy, format=FORMAT + 1)
    code, said = answer(command, copy, capsys)
    assert code == 2
    assert f"fit.parquet: written by a newer bora_sweep (results format {FORMAT + 1}" in said


@commands
def test_a_table_that_is_damaged(command, copy, capsys):
    (copy / "results" / "trials" / "fit.parquet").write_bytes(b"PAR1 and no more")
    code, said = answer(command, copy, capsys)
    assert code == 2
    assert "fit.parquet: damaged" in said


@commands
def test_a_configuration_of_another_version(command, copy, capsys):
    """The report needs none; the others say which key they do not know."""
    (copy / "config.yaml").write_text("prior:\n  sharing: 3\n")
    rewritten(copy, config_json=json.dumps({"prior": {"sharing": 3}}))
    code, said = answer(command, copy, capsys)
    if command == "report":
        assert code == 0
        return
    assert code == 2
    assert "sharing" in said
    assert "another version of bora_sweep" in said


@commands
@pytest.mark.parametrize("kind", ["absent", "damaged", "another version"])
def test_adapters_that_cannot_be_read(command, kind, copy, capsys):
    """Only those commands stop that need them."""
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
    code, said = answer(command, copy, capsys)
    if command in ("report", "status"):
        assert code == 0
        return
    assert code == 2
    words = {"absent": "has no adapters.safetensors", "damaged": "checksum", "another version": "another version"}
    assert words[kind] in said
    assert str(copy) in said
