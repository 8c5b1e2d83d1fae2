"""A pack has what a colleague needs and no text; unpacked elsewhere it works, and refuses what it cannot do."""

import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from tiny import make_base, make_frame, make_tokenizer
from travels import SECRET, TRIALS, make_questions, make_runs, said

import bora_sweep
from bora_sweep import packing
from bora_sweep.errors import InputError
from bora_sweep.runs.folder import FORGETTING, PACKED, config_of
from bora_sweep.runs.results import read_results, trial_rows
from bora_sweep.runs.run_lock import run_lock
from bora_sweep.runs.storage import folder_at
from bora_sweep.tune.numbering import POINTS


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("begun")
    make_runs(place)
    return place


@pytest.fixture
def place(begun, tmp_path) -> Path:
    """The runs and their inputs, to be changed."""
    for name in ("fit", "sweep", "base"):
        shutil.copytree(begun / name, tmp_path / "here" / name)
    shutil.copy(begun / "s.jsonl", tmp_path / "here" / "s.jsonl")
    return tmp_path / "here"


@pytest.fixture
def gone(begun):
    """While a test runs, nothing is where the runs say that it is."""
    away = begun.with_name("gone")
    begun.rename(away)
    yield away
    away.rename(begun)


def unpack(file: Path, to: Path) -> Path:
    """As a colleague does; returns the run's folder."""
    to.mkdir()
    subprocess.run(["tar", "-xf", str(file)], cwd=to, check=True)
    (run,) = to.iterdir()
    return run


def texts(folder: Path) -> dict[str, str]:
    """Each file of a folder as text; of Parquet its values."""
    found = {}
    for file in filter(Path.is_file, folder.rglob("*")):
        is_table = file.suffix == ".parquet"
        text = (
            pq.ParquetFile(file).read().to_pandas().to_csv() if is_table else file.read_bytes().decode(errors="replace")
        )
        found[str(file.relative_to(folder))] = text
    return found


def members(file: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(file) as tar:
        return tar.getmembers()


def test_a_packed_run_works_where_it_is_unpacked_and_its_base_has_moved(gone, tmp_path):
    packed = bora_sweep.pack(gone / "sweep", tmp_path / "p.tar")
    run = unpack(tmp_path / "p.tar", tmp_path / "colleague")
    assert run.name == "sweep"
    shutil.copytree(gone / "base", tmp_path / "opt")
    model = f"model.name={tmp_path / 'opt'}"
    assert packed.num_bytes == (tmp_path / "p.tar").stat().st_size
    assert said("status", run)[0] == 0
    first = read_results(run).document_scores.drop(columns="run")
    assert first.equals(read_results(gone / "sweep").document_scores.drop(columns="run"))
    packed_report = (run / "report" / "report.md").read_bytes()
    assert said("report", run)[0] == 0
    assert (run / "report" / "report.md").read_bytes() == packed_report
    answer = packed_report.decode().split("\n\n")[1]
    assert answer == (gone / "sweep" / "report" / "report.md").read_text().split("\n\n")[1]
    code, told = said("export", run, tmp_path / "out")
    assert (code, "say where it is now by model.name=…" in told) == (2, True)
    assert said("export", run, tmp_path / "out", model)[0] == 0
    assert said("generate", run, "w1", "--task", "ann", "--max-new-tokens", "2", model)[0] == 0
    make_questions({"eve": 6, "fay": 6}, seed=3).to_json(tmp_path / "new.jsonl", orient="records", lines=True)
    code, told = said("add", run, tmp_path / "new.jsonl", model, "train.max_epochs=1", f"output={tmp_path / 'added'}")
    assert code == 0, told
    make_base("opt", seed=1, dtype=torch.float32).save_pretrained(tmp_path / "opt")
    for command in (["export", run, tmp_path / "out2"], ["generate", run, "w1", "--task", "ann"]):
        code, told = said(*command, model)
        assert (code, "model.safetensors has changed" in told) == (2, True)
    assert not (tmp_path / "out2").exists()


def test_a_resume_of_a_run_without_all_its_trials_is_refused(place, tmp_path):
    (place / "sweep" / POINTS).write_text("the numbers")
    code, told = said("pack", place / "sweep", tmp_path / "p.tar")
    assert code == 0
    assert "adapters or checkpoints of 2 trials (--all-trials)" in told
    run = unpack(tmp_path / "p.tar", tmp_path / "colleague")
    assert (run / POINTS).read_text() == "the numbers"  # else an extended sweep is renumbered
    code, told = said("sweep", "--resume", f"output={run}")
    assert (code, "without the files of 2 trials" in told) == (2, True)
    assert said("pack", run, tmp_path / "again.tar")[0] == 0  # and a pack of it knows that too
    again = unpack(tmp_path / "again.tar", tmp_path / "third")
    assert "without the files of 2 trials" in said("sweep", "--resume", f"output={again}")[1]
    (again / PACKED).write_text("{")
    assert "damaged" in said("sweep", "--resume", f"output={again}")[1]
    assert said("forget", run, "--task", "ann")[0] == 0
    others = [trial for trial in TRIALS if not (run / "trials" / trial).exists()]
    code, told = said("export", run, tmp_path / "out", "--trial", others[0])
    assert (code, "--all-trials" in told) == (2, True)


def test_with_everything_a_fit_goes_on_elsewhere_from_its_checkpoint(begun, gone, tmp_path):
    shutil.copytree(gone, begun)  # packed where it was made, and then gone from there
    try:
        assert said("pack", begun / "fit", tmp_path / "p.tar", "--all-trials", "--with-data", "--with-base")[0] == 0
    finally:
        shutil.rmtree(begun)
    run = unpack(tmp_path / "p.tar", tmp_path / "colleague")
    assert said("fit", "--resume", f"output={run}")[0] == 0
    (row,) = trial_rows(run)
    assert (row["status"], row["attempts"]) == ("finished", 2)
    assert config_of(run).data.path == str(run / "inputs" / "data.path" / "s.jsonl")
    assert config_of(run).model.name == str(run / "inputs" / "model.name" / "base")
    (run / "inputs" / "data.path" / "._s.jsonl").write_bytes(b"\0")  # as a file manager leaves
    (run / "inputs" / "model.name" / ".DS_Store").write_bytes(b"\0")
    run.rename(tmp_path / "renamed")
    assert said("export", tmp_path / "renamed", tmp_path / "out")[0] == 0
    code, told = said("forget", tmp_path / "renamed", "--task", "ann")
    assert (code, "holds the documents" in told) == (2, True)
    shutil.rmtree(tmp_path / "renamed" / "inputs" / "data.path")
    assert said("forget", tmp_path / "renamed", "--task", "ann")[0] == 0


def test_no_text_is_in_it_unless_it_is_asked_for(place, begun, tmp_path):
    assert SECRET in "".join(texts(place / "sweep").values())
    code, told = said("pack", place / "sweep", tmp_path / "p.tar", "--all-trials")
    assert code == 0
    for says in ("texts in predictions of 3 trials (--with-data)", "errors of 1 trial", "error.txt"):
        assert says in told
    assert SECRET in (place / "sweep" / "report" / "report.md").read_text()
    run = unpack(tmp_path / "p.tar", tmp_path / "colleague")
    assert not [name for name, text in texts(run).items() if SECRET in text]
    assert packing.WITHHELD in (run / "report" / "report.md").read_text()
    scores = [read_results(folder).predictions["score"].tolist() for folder in (run, place / "sweep")]
    assert scores[0] == scores[1] != []
    assert said("pack", place / "sweep", tmp_path / "q.tar", "--with-data")[0] == 0
    run = unpack(tmp_path / "q.tar", tmp_path / "second")
    assert {name for name, text in texts(run).items() if SECRET in text} >= {
        "inputs/data.path/s.jsonl", "results/predictions/002.parquet", "results/trials/003.parquet"
    }  # fmt: skip
    assert (run / "inputs" / "data.path" / "s.jsonl").read_bytes() == (begun / "s.jsonl").read_bytes()


def test_the_same_run_gives_the_same_bytes_and_its_members_have_no_owner(place, tmp_path):
    for name in ("a", "b"):
        bora_sweep.pack(place / "sweep", tmp_path / f"{name}.tar", all_trials=True)
        for file in (place / "sweep").rglob("*"):
            file.touch()
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    found = members(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as tar:
        contents = [tar.extractfile(member).read() for member in found]  # type: ignore[union-attr]
    assert not [content for content in contents if b"/tmp/bora-sweep-" in content]
    assert [member.name for member in found] == sorted(member.name for member in found)
    for member in found:
        assert member.isfile()
        assert member.name.startswith("sweep/")
        assert ".." not in Path(member.name).parts
        assert (member.uid, member.gid, member.uname, member.gname, member.mode) == (0, 0, "", "", 0o644)
    with tarfile.open(tmp_path / "a.tar") as tar:
        tar.extractall(tmp_path / "safe", filter="data")  # raises where a member is not safe
    assert (tmp_path / "safe" / "sweep" / "trials" / "001" / "adapters.safetensors").exists()


def test_no_member_leaves_the_folder_that_it_is_unpacked_in_however_the_run_is_named(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place / "sweep" / "results")
    assert said("pack", "..", tmp_path / "a.tar")[0] == 0
    assert {Path(member.name).parts[0] for member in members(tmp_path / "a.tar")} == {"sweep"}


def test_it_is_written_whole_or_not_at_all_and_over_nothing(place, tmp_path, monkeypatch):
    (tmp_path / "p.tar").write_text("mine")
    code, told = said("pack", place / "sweep", tmp_path / "p.tar")
    assert (code, "is there already" in told) == (2, True)
    assert (tmp_path / "p.tar").read_text() == "mine"
    code, told = said("pack", place / "sweep", tmp_path / "p.tar.gz")
    assert (code, "ends with .tar" in told) == (2, True)

    def fail(part, files) -> None:
        part.write_bytes(next(iter(files)).encode())
        raise OSError("cut off")

    monkeypatch.setattr(packing, "write_tar", fail)
    with pytest.raises(OSError, match="cut off"):
        bora_sweep.pack(place / "sweep", tmp_path / "new" / "q.tar")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_run_in_use_or_half_forgotten_is_refused(place, tmp_path):
    with run_lock(place / "sweep", "sweep"):
        code, told = said("pack", place / "sweep", tmp_path / "p.tar")
        assert (code, "works on it" in told) == (2, True)
    assert not (tmp_path / "p.tar").exists()
    (place / "sweep" / FORGETTING).write_text("{}")
    code, told = said("pack", place / "sweep", tmp_path / "p.tar")
    assert (code, "bora-sweep forget" in told) == (2, True)
    code, told = said("pack", tmp_path, tmp_path / "p.tar")
    assert (code, "not a run's folder" in told) == (2, True)
    assert not (tmp_path / "p.tar").exists()


def test_inputs_that_have_changed_or_gone_are_not_packed(begun, place, gone, tmp_path):
    for option, says in {"--with-base": "model.name=…", "--with-data": "data.path=…"}.items():
        code, told = said("pack", place / "sweep", tmp_path / "p.tar", option)
        assert (code, f"resume the run once with {says} of where it is now" in told) == (2, True)
    shutil.copytree(gone, begun)
    try:
        make_base("opt", seed=1, dtype=torch.float32).save_pretrained(begun / "base")
        frame = pd.read_json(begun / "s.jsonl", lines=True)
        frame.iloc[1:].to_json(begun / "s.jsonl", orient="records", lines=True)
        code, told = said("pack", place / "sweep", tmp_path / "p.tar", "--with-base")
        assert (code, "model.safetensors has changed" in told) == (2, True)
        code, told = said("pack", place / "sweep", tmp_path / "p.tar", "--with-data")
        assert (code, "task 'ann' has 13 documents where it had 14" in told) == (2, True)
        frame.loc[0, "prompt"] += " w1"
        frame.to_json(begun / "s.jsonl", orient="records", lines=True)
        code, told = said("pack", place / "sweep", tmp_path / "p.tar", "--with-data")
        assert (code, "task 'ann' has other documents or prompts" in told) == (2, True)
    finally:
        shutil.rmtree(begun)
    assert not (tmp_path / "p.tar").exists()


def test_a_secret_of_the_environment_is_not_packed(place, tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", str(config_of(place / "sweep").data.path))
    with pytest.raises(InputError, match="holds a secret"):
        bora_sweep.pack(place / "sweep", tmp_path / "p.tar")


def test_a_run_of_add_is_packed_too(begun, tmp_path):
    make_questions({"eve": 6, "fay": 6}, seed=3).to_json(tmp_path / "new.jsonl", orient="records", lines=True)
    added = tmp_path / "added"
    code, told = said("add", begun / "sweep", tmp_path / "new.jsonl", "train.max_epochs=1", f"output={added}")
    assert code == 0, told
    assert said("pack", added, tmp_path / "p.tar", "--all-trials", "--with-data", "--with-base")[0] == 0
    shutil.rmtree(added)
    run = unpack(tmp_path / "p.tar", tmp_path / "colleague")
    for command in (["status", run], ["export", run, tmp_path / "out"], ["add", "--resume", f"output={run}"]):
        code, told = said(*command)
        assert code == 0, told
    assert (run / "start" / "adapters.safetensors").exists()
    assert "# Tasks added to sweep" in (run / "report" / "report.md").read_text()


def test_data_and_base_in_the_runs_folder_stay_where_they_are_in_it(tmp_path):
    model, frame = make_base("opt", dtype=torch.float32), make_frame({"ann": 14, "bob": 12})
    bora_sweep.fit("model.max_tokens=16", "lora.rank=2", "train.max_epochs=1", "train.device=cpu",
                   f"output={tmp_path / 'run'}", data=frame, model=model, tokenizer=make_tokenizer())  # fmt: skip
    packed = bora_sweep.pack(tmp_path / "run", tmp_path / "p.tar")
    assert {"run/data.parquet", "run/base/config.json"}.isdisjoint(member.name for member in members(packed.file))
    assert len(packed.left_out) == 2
    bora_sweep.pack(tmp_path / "run", tmp_path / "q.tar", with_data=True, with_base=True)
    shutil.rmtree(tmp_path / "run")
    run = unpack(tmp_path / "q.tar", tmp_path / "colleague")
    assert said("fit", "--resume", f"output={run}")[0] == 0  # its one trial is the best, so all is there
    assert config_of(run).data.path == str(run / "data.parquet")
    assert json.loads((run / PACKED).read_text())["trials_left_out"] == 0


def test_a_run_in_an_object_store_is_packed_into_it(place):
    pytest.importorskip("fsspec")
    store = folder_at("memory://packs/run")
    for file in filter(Path.is_file, (place / "sweep").rglob("*")):
        (store / str(file.relative_to(place / "sweep"))).write_bytes(file.read_bytes())
    bora_sweep.pack(store, folder_at("memory://packs/p.tar"))
    content = folder_at("memory://packs/p.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        names = tar.getnames()
    assert "run/results/trials/000.parquet" in names
    assert any(name.endswith("adapters.safetensors") for name in names)
