"""A task that leaves a run is in no file of it; what stays is what was there; what is cut off is finished."""

import json
import math
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from made_up_runs import HOSTILE, write_trial
from rich.console import Console
from safetensors import safe_open
from tiny import WORDS, make_base, make_tokenizer

import bora_sweep
from bora_sweep.cli import main
from bora_sweep.config import load_config, with_values
from bora_sweep.data.corpus import load_corpus
from bora_sweep.data.groups import shorten_groups, write_groups
from bora_sweep.data.known_documents import DOCUMENTS, read_documents
from bora_sweep.errors import InputError
from bora_sweep.forgetting import forget
from bora_sweep.launch import claim_run
from bora_sweep.model.base import load_base
from bora_sweep.prepare import prepare_fit
from bora_sweep.process import Interrupted
from bora_sweep.report import write_report
from bora_sweep.report.manager import write_manager
from bora_sweep.runs import storage
from bora_sweep.runs.folder import FORGETTING, config_of, create_run
from bora_sweep.runs.results import SCHEMAS, read_results, trial_rows
from bora_sweep.runs.run_lock import DRIVER_FILE, run_lock
from bora_sweep.runs.storage import read_bytes, write_bytes
from bora_sweep.serve.export import export
from bora_sweep.train.checkpoint import load_adapters
from bora_sweep.trials.leaving import NOTE, UNNAMED, Leaving, take_out
from bora_sweep.trials.trial import Trial, run_pack

LEAVES = "zorro 'of' \"the\"/hills\nañd"
"""The task that leaves. Its documents' ids begin with `gone-`, and each of its prompts has the word zebra."""
GROUPS = pd.DataFrame({"task": ["ann", LEAVES, "bob", "cid"], "group": ["x", "x", "y", "y"], "place": range(4)})
SMALL = ["model.max_tokens=24", "lora.rank=2", "train.max_epochs=2", "train.device=cpu", "train.learning_rate=0.02"]
TREATIES = {"000": {"prior": {"tau": 0.0}}, "001": {"prior": {"tau": math.inf}}, "002": {"prior": {"tau": 30.0}},
            "003": {"method": "vi"}, "004": {"method": "zero_shot"},
            "007": {"prior": {"tau": "learn", "groups": "task"}}}  # fmt: skip


def make_questions(sizes: dict[str, int]) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for number, (task, size) in enumerate(sizes.items()):
        for n in range(size):
            words = rng.choice(WORDS, 4)
            prompt = " ".join(["zebra", *words] if task == LEAVES else words)
            answer = f"w{(number + rng.integers(0, 3)) % 5} "
            rows.append({"task": task, "prompt": prompt, "completion": answer,
                         "id": f"{'gone' if task == LEAVES else task}-{n}"})  # fmt: skip
    return pd.DataFrame(rows)


def stop_after(steps: int):
    left = iter(range(steps))

    def check_stop() -> None:
        if next(left, None) is None:
            raise Interrupted

    return check_stop


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A folder with data, a base, and a run with trials of each kind, one of them cut off, another failed."""
    place = tmp_path_factory.mktemp("begun")
    make_questions({"ann": 14, LEAVES: 13, "bob": 12, "cid": 9}).to_parquet(place / "q.parquet")
    make_base("opt", dtype=torch.float32).save_pretrained(place / "base")
    make_tokenizer().save_pretrained(place / "base")
    settings = [*SMALL, f"data.path={place / 'q.parquet'}", "data.id_column=id", f"model.name={place / 'base'}",
                "metrics=[accuracy]", "tracking=tensorboard", f"output={place / 'run'}"]  # fmt: skip
    prepared = prepare_fit(settings, False, Console(quiet=True))
    base, run = load_base(prepared.config.model, prepared.config.data), prepared.run
    with claim_run(prepared, "sweep", Console(quiet=True)):
        for trial_id, changes in TREATIES.items():
            run_pack([Trial(trial_id, with_values(prepared.config, **changes))], prepared.corpus, lambda: base, run)
        cut_off = Trial("005", with_values(prepared.config, prior={"tau": 3.0}, train={"max_epochs": 9}))
        with pytest.raises(Interrupted):
            run_pack([cut_off], prepared.corpus, lambda: base, run, check_stop=stop_after(12))
        failing = Trial("006", prepared.config)
        with pytest.raises(ValueError, match="gone-3"):
            run_pack([failing], prepared.corpus, lambda: refuse_document(), run)
        write_report(run)
    write_bytes(run / "error.txt", f"in document 'gone-3' of {LEAVES!r}".encode())
    write_groups(run / "report" / "groups.csv", GROUPS)
    write_groups(run / "of mine" / "groups.csv", GROUPS)
    write_bytes(run / "optuna" / "journal.log", b"0.1")
    write_bytes(run / "results" / "task_scores" / ".000.parquet.7.part", b"gone-3")
    assert list((run / "trials" / "005").glob("checkpoint-*"))
    return place


def refuse_document():
    raise ValueError(f"document 'gone-3' of task {LEAVES!r}: is refused")


@pytest.fixture
def reported(begun, tmp_path) -> Path:
    return shutil.copytree(begun / "run", tmp_path / "run")


@pytest.fixture
def run(reported) -> Path:
    """Without its report, which takes seconds to write."""
    shutil.rmtree(reported / "report")
    return reported


def without_trials(run: Path, *trials: str) -> None:
    for trial_id in trials:
        shutil.rmtree(run / "trials" / trial_id, ignore_errors=True)
        for file in run.glob(f"results/*/{trial_id}.parquet"):
            file.unlink()


def contents(place: Path) -> dict[str, object]:
    """Each file's bytes; of one of adapters what is in it, as safetensors writes its header in any order."""
    files = {str(file.relative_to(place)): file for file in sorted(place.rglob("*")) if file.is_file()}
    return {name: adapters(file) if name.endswith("/adapters.safetensors") else file.read_bytes()
            for name, file in files.items()}  # fmt: skip


def adapters(file: Path) -> tuple:
    tensors, about = load_adapters(file.parent)
    return {name: tensor.tolist() for name, tensor in tensors.items()}, about


def text_of(file: Path) -> str:
    """Everything that a file says, but for the configuration in which a task's name stays."""
    if file.suffix == ".parquet":
        frame = pq.ParquetFile(file).read().to_pandas()
        return frame.drop(columns=["config_json"], errors="ignore").to_csv(index=False)
    return file.read_bytes().decode(errors="replace")


def test_no_file_has_anything_of_it_but_its_name_in_the_configuration(reported):
    run = reported
    before = {file.relative_to(run) for file in run.rglob("*") if file.is_file() and re.search(
        "zorro|gone-|zebra", text_of(file))}  # fmt: skip
    assert {*map(str, before)} >= {
        "report/groups.csv", "of mine/groups.csv", "documents.parquet", "fingerprints.json", "error.txt",
        "report/index.html", "trials/002/adapters.safetensors",
        "results/trials/006.parquet", *(f"results/{table}/002.parquet" for table in
                                        ("task_scores", "document_scores", "predictions")),
    }  # fmt: skip
    done = forget(run, LEAVES)
    assert done.tasks == (LEAVES,)
    for file in filter(Path.is_file, run.rglob("*")):
        said = text_of(file)
        assert not re.search("gone-|zebra", said), file
        if file.name not in ("config.yaml", "index.html", "trials.csv"):
            assert "zorro" not in said, file
    assert config_of(run).data.exclude_tasks == [LEAVES]
    assert len(re.findall("zorro", (run / "config.yaml").read_text())) == 1
    page = (run / "report" / "index.html").read_text()
    assert len(re.findall("zorro", page)) == len(re.findall(r'- \\\\\\"zorro|- \\"zorro', page)) <= 1
    trials = pd.read_csv(run / "report" / "tables" / "trials.csv")
    assert "zorro" not in trials.drop(columns="config_json").to_csv()
    assert {json.dumps(json.loads(row["config_json"])["data"]["exclude_tasks"]) for row in trial_rows(run)} == {
        json.dumps([LEAVES])
    }
    gone = ("error.txt", "optuna", "tracking", FORGETTING, DRIVER_FILE, "results/curves/002.parquet")
    assert not [name for name in gone if (run / name).exists()]
    assert not list(run.rglob("*.part"))
    assert "rows of files of groups are gone: of mine/groups.csv, report/groups.csv" in done.notes
    assert any("files of groups that were written elsewhere" in note for note in done.notes)
    for folder in ("report", "of mine"):
        assert (run / folder / "groups.csv").read_text() == "task,group\nann,x\nbob,y\ncid,y\n"


@pytest.mark.parametrize("has_report", [True, False])
def test_groups_in_the_reports_folder_are_shortened_with_a_report_or_without(has_report, run):
    write_groups(run / "report" / "groups.csv", GROUPS)
    if has_report:
        write_report(run)
    forget(run, LEAVES)
    assert (run / "report" / "groups.csv").read_text() == "task,group\nann,x\nbob,y\ncid,y\n"
    assert (run / "report" / "report.md").exists() == has_report


def test_a_file_of_groups_elsewhere_is_named_as_it_was(run, tmp_path):
    write_groups(tmp_path / "groups.csv", GROUPS)
    create_run(with_values(config_of(run), data={"groups_path": str(tmp_path / "groups.csv")}), run)
    before = (tmp_path / "groups.csv").read_bytes()
    assert f"data.groups_path={tmp_path / 'groups.csv'} is as it was" in forget(run, LEAVES).notes
    assert (tmp_path / "groups.csv").read_bytes() == before


def test_rows_of_files_of_groups_go_and_the_others_are_as_they_were(tmp_path):
    """Names of any kind, an empty group, and other files of the same folder."""
    names = [*HOSTILE, "NA", 'a "b"', "c,d", "line\r\nend", "é"]
    table = pd.DataFrame({"task": names, "group": [*names[1:], None]})
    write_groups(tmp_path / "a.csv", table)
    others = {"b.csv": b"task,group,more\nNA,x,1\n", "c.csv": b"", "d.txt": b"task,group\nNA,x\n"}
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    whole = (tmp_path / "a.csv").read_bytes()
    assert shorten_groups(tmp_path, ["nobody"]) == []
    assert (tmp_path / "a.csv").read_bytes() == whole
    for number, name in enumerate(names):
        assert shorten_groups(tmp_path, [name]) == ["a.csv"]
        write_groups(tmp_path / "kept" / "a.csv", table[number + 1 :])
        assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "kept" / "a.csv").read_bytes()
        (tmp_path / "kept" / "a.csv").unlink()
    assert {name: (tmp_path / name).read_bytes() for name in others} == others
    (tmp_path / "e.csv").write_bytes(b"task,group\n\xff,x\n")
    with pytest.raises(InputError, match=r"e\.csv: .*no CSV in UTF-8"):
        shorten_groups(tmp_path, ["a"])


def test_what_stays_is_as_it_was_and_sums_are_over_it(run):
    before = read_results(run)
    fitted = {trial_id: load_adapters(run / "trials" / trial_id) for trial_id in TREATIES}
    forget(run, [LEAVES])
    after = read_results(run)
    for table in ("task_scores", "document_scores", "predictions"):
        was = getattr(before, table)
        was = was[was["task"] != LEAVES].reset_index(drop=True)
        pd.testing.assert_frame_equal(getattr(after, table), was, check_exact=True)
    rows, rows_before = after.trials.set_index("trial_id"), before.trials.set_index("trial_id")
    for trial_id in TREATIES:
        (tensors, about), (were, about_before) = load_adapters(run / "trials" / trial_id), fitted[trial_id]
        kept = [n for n, task in enumerate(about_before["tasks"]) if task != LEAVES]
        assert about == about_before | {"tasks": ["ann", "bob", "cid"]}
        assert torch.equal(tensors["mean_P"], were["mean_P"])
        for name in tensors.keys() - {"mean_P"}:
            assert torch.equal(tensors[name], were[name][kept]), name
        for split in ("validation", "test"):
            chosen = (after.document_scores["trial_id"] == trial_id) & (after.document_scores["split"] == split)
            documents, row = after.document_scores[chosen], rows.loc[trial_id]
            assert row[f"{split}_num_tokens"] == documents["num_tokens"].sum()
            assert row[f"{split}_nll_nats"] == pytest.approx(math.fsum(documents["nll_nats"]), rel=1e-12)
            mean = math.fsum(documents["nll_nats"]) / documents["num_tokens"].sum()
            assert row[f"{split}_perplexity"] == pytest.approx(math.exp(mean), rel=1e-12)
            sums = pd.pivot_table(documents, index="task", values=["nll_nats", "num_tokens"], aggfunc="sum")
            macro = np.exp(sums["nll_nats"].to_numpy() / sums["num_tokens"].to_numpy()).mean()
            assert row[f"{split}_macro_perplexity"] == pytest.approx(macro, rel=1e-12)
            scored = after.predictions[
                (after.predictions["trial_id"] == trial_id) & (after.predictions["split"] == split)]  # fmt: skip
            assert json.loads(row[f"{split}_metrics"]) == {"accuracy": pytest.approx(scored["score"].mean())}
    assert "std_KP" in load_adapters(run / "trials" / "003")[0]
    costs = ["train_tokens", "train_seconds", "epochs", "best_epoch", "peak_memory_bytes", "started_at", "tau"]
    finished = rows["status"] == "finished"
    pd.testing.assert_frame_equal(rows.loc[finished, costs], rows_before.loc[finished, costs])
    assert rows.loc[[*TREATIES], "notes"].fillna("").tolist() == [NOTE] * 4 + ["", NOTE]
    assert rows.loc["006", "error"] == UNNAMED
    assert rows_before.loc["005", "validation_num_tokens"] > 0
    assert rows.loc["005", ["status", "epochs"]].tolist() == ["interrupted", 0]
    so_far = ["validation_nll_nats", "validation_num_tokens", "train_tokens", "best_epoch", "notes"]
    assert rows.loc["005", so_far].isna().all()
    assert rows["cut_token_fraction"].isna().all()
    assert len(after.curves) == 0


def test_sums_of_all_tasks_made_again_are_those_that_the_fit_made(run):
    before = trial_rows(run)
    for row in before:
        take_out(run, row, Leaving(frozenset(["nobody"])))
    changed = {"notes", "cut_token_fraction"}
    for row, was in zip(trial_rows(run), before, strict=True):
        if was["status"] == "finished":
            assert {k: v for k, v in row.items() if k not in changed} == {k: v for k, v in was.items()
                                                                         if k not in changed}  # fmt: skip


def test_it_can_be_cut_off_between_any_two_writes(run, tmp_path, monkeypatch):
    without_trials(run, "000", "001", "003", "004", "006")
    whole = shutil.copytree(run, tmp_path / "whole")
    forget(whole, LEAVES)
    expected = contents(whole)
    for number in range(1, 200):
        again = shutil.copytree(run, tmp_path / "again")
        with monkeypatch.context() as patch:
            kill_at(number, patch)
            try:
                forget(again, LEAVES)
            except Killed:
                pass
            else:
                assert number > 15
                return
        if (again / FORGETTING).exists():
            with pytest.raises(InputError, match=r"bora-sweep forget \S*again again"):
                prepare_fit([f"output={again}"], True, Console(quiet=True))
            forget(again)
        else:
            forget(again, LEAVES)
        assert contents(again) == expected, number
        shutil.rmtree(again)
    pytest.fail("it never ended")


@pytest.mark.parametrize(
    "number", [pytest.param(45), *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 37, 55, 65))]
)
def test_a_report_is_written_again_also_after_it_was_cut_off(number, reported, tmp_path, monkeypatch):
    run = reported
    without_trials(run, "003", "004")
    whole = shutil.copytree(run, tmp_path / "whole" / "run")
    forget(whole, LEAVES)
    with monkeypatch.context() as patch:
        kill_at(number, patch)
        with pytest.raises(Killed):
            forget(run, LEAVES)
    forget(run, LEAVES)
    assert contents(run).keys() == contents(whole).keys()
    for name, content in contents(whole).items():
        if not name.startswith("report/"):
            assert contents(run)[name] == content, name
    told = (run / "report" / "report.md").read_text()
    assert told == (whole / "report" / "report.md").read_text()
    assert told == read_bytes(write_report(run)).decode()  # also its digests are those of what stays


def test_the_page_for_who_decides_goes_with_it_where_it_is_the_only_one(run):
    page = write_manager(run)
    assert isinstance(page, Path)
    forget(run, LEAVES)
    assert not page.exists()
    assert not page.with_name("manager.html").exists()
    assert LEAVES not in (run / "report" / "report.md").read_text()


class Killed(BaseException):
    """As by SIGKILL: nothing catches it."""


def kill_at(number: int, patch: pytest.MonkeyPatch) -> None:
    """Kill before the write or removal of this number; heartbeats do not count."""
    count = iter(range(1, number))
    write, unlink, remove_tree = storage._write_local, Path.unlink, storage.shutil.rmtree

    def step(path) -> None:
        if Path(path).name != DRIVER_FILE and next(count, None) is None:
            raise Killed

    def write_local(path, content) -> None:
        step(path)
        write(path, content)

    def unlink_counted(path, missing_ok=False) -> None:
        if path.exists() and ".part" not in path.name:
            step(path)
        unlink(path, missing_ok=missing_ok)

    def rmtree(path, *args, **options) -> None:
        if Path(path).exists() and "bora-sweep-" not in str(path):
            step(path)
        remove_tree(path, *args, **options)

    patch.setattr(storage, "_write_local", write_local)
    patch.setattr(Path, "unlink", unlink_counted)
    patch.setattr(storage.shutil, "rmtree", rmtree)


def test_what_cannot_be_done_is_refused_and_nothing_is_written(run, begun, capsys):
    before = contents(run)

    def refused(*arguments: str) -> str:
        assert main(["forget", *map(str, arguments)]) == 2
        return " ".join(capsys.readouterr().err.split())

    assert "no such task; the nearest names are 'ann'" in refused(run, "--task", "anna")
    assert "no task would be left; remove the run as a whole, by rm -r" in refused(
        run, *[part for task in ("ann", "bob", "cid", LEAVES) for part in ("--task", task)])  # fmt: skip
    assert "name the task that leaves the run with --task" in refused(run)
    assert "not a run's folder" in refused(begun, "--task", "ann")
    assert "not a run's folder, there is nothing" in refused(begun / "none", "--task", "ann")
    assert not (begun / "none").exists()
    with run_lock(run):
        assert "work" in refused(run, "--task", LEAVES)
    assert contents(run) == before
    assert main(["forget", str(run), "--task", LEAVES]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in ("2 trials that had not finished", "may still carry something of it", "learning curves are gone",
                 "tracking/ is gone", "data.exclude_tasks"):  # fmt: skip
        assert part in said
    assert "data.exclude_tasks leaves it out already" in refused(run, "--task", LEAVES)


def test_the_command_that_it_ends_with_fits_the_same_documents_in_the_same_splits(begun, tmp_path, capsys):
    settings = [*SMALL, f"data.path={begun / 'q.parquet'}", "data.id_column=id", f"model.name={begun / 'base'}"]
    run = tmp_path / "a run"
    assert main(["fit", *settings, f"output={run}"]) == 0
    before = read_documents(run).set_index("document_id")["split"]
    capsys.readouterr()
    assert main(["forget", str(run), "--task", LEAVES]) == 0
    command = shlex.split(capsys.readouterr().out.strip().split("to fit anew without: ")[1])
    assert command[0] == "bora-sweep"
    assert main(command[1:]) == 0
    refitted = Path(command[-1].removeprefix("output="))
    after = read_documents(refitted)
    assert not after["carried"].any()
    assert after.set_index("document_id")["split"].to_dict() == {
        name: split for name, split in before.items() if not str(name).startswith("gone-")
    }
    one, other = (config_of(place).to_dict() for place in (run, refitted))
    assert one.pop("output") != other.pop("output")
    assert one["data"].pop("split_from") != other["data"].pop("split_from")
    assert one == other


def test_a_run_goes_on_without_it_and_says_what_it_cannot_know(begun, tmp_path, capsys, monkeypatch):
    settings = [*SMALL, f"data.path={begun / 'q.parquet'}", "data.id_column=id", f"model.name={begun / 'base'}",
                "data.max_tasks=4", "train.max_epochs=5"]  # fmt: skip
    frame = pd.read_parquet(begun / "q.parquet")
    more = make_questions({"dot": 8}).assign(id=lambda rows: "more-" + rows["id"])
    pd.concat([frame, more.assign(task="zzz")]).to_parquet(tmp_path / "q.parquet")
    settings[len(SMALL)] = f"data.path={tmp_path / 'q.parquet'}"
    run = tmp_path / "run"
    monkeypatch.setattr("bora_sweep.launch.defer_signals", lambda _: StopSoon())
    assert main(["fit", *settings, f"output={run}"]) == 130
    monkeypatch.undo()
    assert list((run / "trials" / "fit").glob("checkpoint-*"))
    forget(run, LEAVES)
    assert not list((run / "trials").rglob("*.safetensors"))
    assert config_of(run).data.max_tasks == 3  # else `zzz` would move up
    capsys.readouterr()
    assert main(["fit", "--resume", f"output={run}"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "cannot be compared with the run's start, and count as they are now: the tokens" in said
    assert set(read_results(run).task_scores["task"]) == {"ann", "bob", "cid"}
    assert main(["fit", "--resume", f"output={run}"]) == 0
    assert "cannot be compared" not in capsys.readouterr().err
    forget(run, "bob")
    frame.assign(prompt=frame["prompt"].where(frame["id"] != "ann-1", "w1 w2")).to_parquet(tmp_path / "q.parquet")
    assert main(["fit", "--resume", f"output={run}"]) == 2
    assert "task 'ann' has other documents or prompts" in " ".join(capsys.readouterr().err.split())


def test_a_fit_that_began_with_adapters_of_it_goes_on_without_their_fingerprints(begun, tmp_path, capsys):
    names = export(begun / "run", tmp_path / "out", trial="002")
    settings = [*SMALL, f"data.path={begun / 'q.parquet'}", "data.id_column=id", f"model.name={begun / 'base'}"]
    run = tmp_path / "run"
    assert main(["fit", *settings, f"init_from={tmp_path / 'out'}", f"output={run}"]) == 0
    assert names[LEAVES] in (run / "fingerprints.json").read_text()
    forget(run, LEAVES)
    assert names[LEAVES] not in (run / "fingerprints.json").read_text()
    forget(tmp_path / "out", LEAVES)
    capsys.readouterr()
    assert main(["fit", "--resume", f"output={run}"]) == 0
    assert "the files of init_from" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "out" / "tasks.json").write_text("{}")
    assert main(["fit", "--resume", f"output={run}"]) == 2
    assert "tasks.json has changed" in " ".join(capsys.readouterr().err.split())


class StopSoon:
    """In place of `defer_signals`: a signal comes after a few steps."""

    def __enter__(self):
        return stop_after(2)

    def __exit__(self, *_: object) -> None:
        return None


@pytest.mark.parametrize("with_ids", [True, False])
def test_data_that_a_program_gave_loses_its_rows_and_keeps_the_others_names(with_ids, begun, tmp_path):
    frame = make_questions({"ann": 12, LEAVES: 12, "bob": 12})
    frame = frame.sample(frac=1, random_state=0).astype({"task": "category"})
    frame = frame if with_ids else frame.drop(columns="id")
    sections = {"model": {"name": begun / "base", "max_tokens": 24}, "lora": {"rank": 2},
                "train": {"max_epochs": 1, "device": "cpu"}}  # fmt: skip
    sections["data"] = frame
    bora_sweep.fit(*(["data.id_column=id"] if with_ids else []), **sections, output=tmp_path / "run")
    run = tmp_path / "run"
    before = read_documents(run).query("task != @LEAVES")
    done = forget(run, LEAVES)
    stored = pq.ParquetFile(run / "data.parquet")
    assert "zebra" not in stored.read().to_pandas().to_csv()
    assert not any(mark in (run / "data.parquet").read_bytes() for mark in (b"zebra", b"zorro"))
    assert config_of(run).data.exclude_tasks == []
    pd.testing.assert_frame_equal(read_documents(run), before.reset_index(drop=True))
    bora_sweep.fit(resume=True, output=run)  # fingerprints of the others, which have ids, are the same
    assert main(shlex.split(str(done.refit))[1:]) == 0
    corpus = load_corpus(config_of(run).data, [run], resumed=True)
    assert corpus.tasks == ("ann", "bob")
    with pytest.raises(InputError, match=r"data: differs from .*data\.parquet"):
        bora_sweep.fit(resume=True, output=run, data=frame)


def test_a_run_in_an_object_store_is_shortened_as_on_disk(store, tmp_path, monkeypatch):
    monkeypatch.setattr("bora_sweep.forgetting.write_report", lambda run, **_: write_bytes(run / "report" / "a", b""))
    places = [tmp_path / "run", storage.folder_at(f"{store.bucket}/{tmp_path.name}")]
    for place in places:
        for tau in (0.0, 100.0):
            write_trial(place, tau, metrics=("accuracy",))
        write_bytes(place / "report" / "report.md", b"of bo")
        write_bytes(place / "report" / "figures" / "a.png", b"of bo")
        for folder in ("report", "mine"):
            write_groups(place / folder / "groups.csv", pd.DataFrame({"task": ["bo", "cy"], "group": ["x", "y"]}))
        done = forget(place, "bo")
        assert "the report is written again" in done.notes
    one, other = (read_results(place) for place in places)
    for table in SCHEMAS:
        a, b = (getattr(results, table).drop(columns="run") for results in (one, other))
        pd.testing.assert_frame_equal(a, b)
        assert table in ("trials", "curves", "similarity", "groups") or set(a["task"]) == {"ada", "cy", "dee", "eve"}
        assert [file.name for file in storage.list_files(places[1] / "report", "*")] == ["a", "groups.csv"]
    for folder in ("report", "mine"):
        assert read_bytes(places[1] / folder / "groups.csv") == b"task,group\ncy,y\n"
    assert not storage.exists(places[1] / FORGETTING)


def test_names_of_any_kind_leave(tmp_path):
    sizes = {**dict.fromkeys([name for name in HOSTILE if name.strip()], 9), "ada": 20, "bo": 20}
    for tau in (0.0, 100.0):
        write_trial(tmp_path / "run", tau, sizes=sizes)
    names = [*sizes][:-2]
    for leaving in (names[::2], names[1::2]):
        assert main(["forget", str(tmp_path / "run"), *[part for name in leaving for part in ("--task", name)]]) == 0
        left = set(read_results(tmp_path / "run").task_scores["task"])
        assert left == sizes.keys() - {*names[::2]} - ({*leaving})
    forget(tmp_path / "run", "ada")
    write_report(tmp_path / "run")  # of one task


@pytest.mark.parametrize(
    ("text", "is_named"),
    [
        ("document 'd7' is empty", True),
        ("document 'd8' is empty", False),
        ("task 'a.b' is gone", True),
        ("task 'axb' is gone", False),
        (f"task {'new' + chr(10) + 'line'!r} is gone", True),
        ("task new line is gone", True),
        ("it broke off bef…", True),
        ("newline", False),
        ("nan at step 7", False),
    ],
)
def test_a_message_that_may_name_it_is_found(text, is_named):
    leaving = Leaving(frozenset(["a.b", "new\nline"]), frozenset(["d7", "7"]))
    assert leaving.may_be_named_in(text) is is_named


@pytest.mark.parametrize("merge", [False, True])
def test_an_export_loses_its_folder_its_names_and_sums_over_it(merge, run, tmp_path, capsys):
    out = tmp_path / "out"
    names = export(run, out, trial="002", merge=merge)
    kept = {name: content for name, content in contents(out).items() if name.split("/")[0] in ("ann", "bob", "cid")}
    assert (out / "cid" / DOCUMENTS).exists() is merge
    assert main(["forget", str(out), "--task", LEAVES]) == 0
    assert "may still carry something" in capsys.readouterr().out
    assert json.loads((out / "tasks.json").read_text()) == {name: name for name in ("ann", "bob", "cid")}
    assert not (out / names[LEAVES]).exists()
    for file in filter(Path.is_file, out.rglob("*")):
        assert not re.search("zorro|gone-|zebra", text_of(file)), file
    after = contents(out)
    assert {name for name in kept if after[name] != kept[name]} <= {f"{name}/{DOCUMENTS}" for name in names}
    card = (out / "_global" / "README.md").read_text()
    assert "Perplexity" not in card
    assert "Documents to" not in card
    assert "Tasks have left" in card
    assert "from_pretrained" in card
    with safe_open(next((out / "_global").glob("*.safetensors")), "pt") as opened:
        assert list(opened.keys())
    for text in ("no such task; the nearest", "no task would be left; remove the export"):
        tasks = ["none"] if "nearest" in text else ["ann", "bob", "cid"]
        assert main(["forget", str(out), *[part for task in tasks for part in ("--task", task)]]) == 2
        assert text in " ".join(capsys.readouterr().err.split())


def test_an_export_is_finished_after_it_was_cut_off(run, tmp_path, monkeypatch):
    export(run, tmp_path / "out", trial="002")
    whole = shutil.copytree(tmp_path / "out", tmp_path / "whole")
    forget(whole, LEAVES)
    for number in range(1, 20):
        again = shutil.copytree(tmp_path / "out", tmp_path / f"again{number}")
        with monkeypatch.context() as patch:
            kill_at(number, patch)
            try:
                forget(again, LEAVES)
            except Killed:
                pass
            else:
                assert number == 5
                return
        forget(again, LEAVES)
        assert contents(again) == contents(whole)


def test_it_is_a_function_of_the_package(tmp_path):
    for tau in (0.0, 100.0):
        write_trial(tmp_path / "run", tau)
    done = bora_sweep.forget(tmp_path / "run", ["bo", "cy"])
    assert (done.tasks, done.refit) == (("bo", "cy"), None)
    assert load_config([]).data.exclude_tasks == []
