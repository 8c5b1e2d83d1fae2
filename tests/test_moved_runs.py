"""A run, its base and its documents are moved: what uses them goes on where they are now, and refuses others."""

import json
import os
import shutil
import stat
from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny import make_base, make_frame, make_tokenizer
from travels import SMALL, make_inputs, make_questions, make_runs, said

import bora_sweep
from bora_sweep.errors import InputError
from bora_sweep.runs.folder import FINGERPRINTS, config_of
from bora_sweep.runs.results import read_results, trial_rows
from bora_sweep.runs.storage import give_usual_modes, write_bytes
from bora_sweep.train.checkpoint import load_adapters, save_checkpoint


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("begun")
    make_runs(place)
    return place


@pytest.fixture
def moved(begun, tmp_path):
    """Runs and inputs in other folders under other names; where they were there is nothing."""
    new = tmp_path / "new home"
    for name, now in {"fit": "runs/a", "sweep": "runs/b", "base": "models/opt"}.items():
        shutil.copytree(begun / name, new / now)
    pd.read_json(begun / "s.jsonl", lines=True).to_parquet(new / "s.parquet")  # the same texts in another file
    away = begun.with_name("away")
    begun.rename(away)
    yield new
    away.rename(begun)


@pytest.fixture
def model(moved) -> str:
    return f"model.name={moved / 'models' / 'opt'}"


@pytest.fixture
def data(moved) -> str:
    return f"data.path={moved / 's.parquet'}"


def test_a_run_whose_model_and_data_have_moved_too_is_used_and_goes_on(moved, model, data, begun):
    cut_off, swept = moved / "runs" / "a", moved / "runs" / "b"
    for run in (cut_off, swept):
        assert said("status", run)[0] == 0
    assert said("report", swept)[0] == 0
    assert said("export", swept, moved / "out", model, data)[0] == 0
    card = (moved / "out" / "ann" / "README.md").read_text()
    assert str(moved / "models" / "opt") in card
    assert "s.parquet" in card
    assert str(begun) not in card
    config = json.loads((moved / "out" / "ann" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(moved / "models" / "opt")
    code, told = said("generate", swept, "--task", "ann", "--max-new-tokens", "2", "w1 w2", model, data)
    assert (code, "== ann ==" in told) == (0, True)
    assert said("fit", "--resume", f"output={cut_off}", model, data)[0] == 0
    (row,) = trial_rows(cut_off)
    assert (row["status"], row["attempts"]) == ("finished", 2)
    assert str(begun) not in (cut_off / "config.yaml").read_text()
    assert config_of(cut_off).data.path == str(moved / "s.parquet")
    assert said("fit", "--resume", f"output={cut_off}")[0] == 0  # it knows by now
    assert said("export", cut_off, moved / "out2")[0] == 0
    assert said("report", cut_off)[0] == 0


def test_it_goes_on_as_if_it_had_not_moved(moved, model, data, tmp_path, begun):
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(moved / "runs" / "a", undisturbed)
    shutil.copytree(begun.with_name("away"), begun)
    try:
        assert said("fit", "--resume", f"output={undisturbed}")[0] == 0
    finally:
        shutil.rmtree(begun)
    assert said("fit", "--resume", f"output={moved / 'runs' / 'a'}", model, data)[0] == 0
    one, other = (load_adapters(run / "trials" / "fit")[0] for run in (undisturbed, moved / "runs" / "a"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def commands(moved: Path) -> dict[str, list[object]]:
    """The commands that use a moved run, which change nothing when they are refused."""
    sweep, new = moved / "runs" / "b", moved / "new.jsonl"
    make_questions({"eve": 6, "fay": 6}, seed=3).to_json(new, orient="records", lines=True)
    return {
        "export": ["export", sweep, moved / "out"],
        "merge": ["export", sweep, moved / "out", "--merge"],
        "bank": ["export", sweep, moved / "out", "--bank"],
        "generate": ["generate", sweep, "w1", "--task", "ann", "--max-new-tokens", "2"],
        "resume": ["fit", "--resume", f"output={moved / 'runs' / 'a'}"],
        "add": ["add", sweep, new, f"output={moved / 'added'}"],
        "forget": ["forget", sweep, "--task", "ann"],
    }


def contents(place: Path) -> dict[str, bytes]:
    return {str(file.relative_to(place)): file.read_bytes() for file in place.rglob("*") if file.is_file()}


@pytest.mark.parametrize("name", ["export", "merge", "bank", "generate", "resume", "add"])
def test_a_base_that_is_gone_is_answered_by_the_key_that_says_where_it_is(name, moved, data):
    command = commands(moved)[name]
    before = contents(moved)
    code, told = said(*command, *([data] if name == "resume" else []))
    assert code == 2
    assert "base is not there; say where it is now by model.name=…" in told
    assert contents(moved) == before


@pytest.mark.parametrize("name", ["export", "merge", "bank", "generate", "resume", "add", "forget"])
def test_another_base_is_refused_by_what_differs(name, moved, model, data):
    command = commands(moved)[name]
    make_base("opt", seed=1, dtype=torch.float32).save_pretrained(moved / "models" / "opt")
    before = contents(moved)
    code, told = said(*command, model, *([data] if name == "resume" else []))
    assert code == 2
    assert f"model.name={moved / 'models' / 'opt'}: model.safetensors has changed" in told
    assert contents(moved) == before


@pytest.mark.parametrize("name", ["export", "generate", "resume", "forget"])
def test_other_documents_are_refused_by_the_task(name, moved, model, data):
    command = commands(moved)[name]
    frame = pd.read_parquet(moved / "s.parquet")
    frame.drop(index=int(frame["task"].eq("bob").idxmax())).to_parquet(moved / "s.parquet")
    before = contents(moved)
    code, told = said(*command, model, data)
    assert code == 2
    assert "task 'bob' has 11 documents where it had 12" in told
    assert contents(moved) == before


@pytest.mark.parametrize("name", ["export", "generate", "resume", "forget"])
def test_other_prompts_with_the_same_completions_are_refused_by_the_task(name, moved, model, data):
    command = commands(moved)[name]
    frame = pd.read_parquet(moved / "s.parquet")
    frame.loc[int(frame["task"].eq("cid").idxmax()), "prompt"] += " w1 w2"
    frame.to_parquet(moved / "s.parquet")
    before = contents(moved)
    code, told = said(*command, model, data)
    assert code == 2
    assert ("have other tokens" if name == "resume" else "task 'cid' has other documents or prompts") in told
    assert contents(moved) == before


def test_a_run_with_one_task_left_is_used_where_its_documents_are_now(moved, model, data):
    run = moved / "runs" / "a"
    assert said("fit", "--resume", f"output={run}", model, data)[0] == 0
    code, told = said("forget", run, "--task", "bob", "--task", "cid")
    assert code == 0, told
    (moved / "s.parquet").rename(moved / "t.parquet")
    code, told = said("export", run, moved / "out", f"data.path={moved / 't.parquet'}")
    assert code == 0, told
    frame = pd.read_parquet(moved / "t.parquet")
    frame.iloc[1:].to_parquet(moved / "t.parquet")
    code, told = said("export", run, moved / "out2", f"data.path={moved / 't.parquet'}")
    assert (code, "task 'ann' has 13 documents where it had 14" in told) == (2, True)


@pytest.mark.parametrize("name", ["export", "generate", "resume", "forget", "add"])
def test_a_run_without_fingerprints_is_not_taken_elsewhere(name, moved, model, data):
    for run in ("a", "b"):
        (moved / "runs" / run / FINGERPRINTS).unlink()
    command = commands(moved)[name]
    code, told = said(*command, model, *([data] if name == "resume" else []))
    assert code == 2
    assert f"has no {FINGERPRINTS}" in told


@pytest.mark.parametrize("name", ["export", "generate", "forget"])
def test_only_places_are_taken(name, moved, model):
    command = commands(moved)[name]
    for setting, says in {"lora.rank=3": "takes only where things are now" if name != "generate" else "one too many",
                          "init_from=x": "takes only where things are now"}.items():  # fmt: skip
        code, told = said(*command, setting, model)
        assert (code, says in told) == (2, True), told


def test_a_place_that_a_run_never_had_is_refused(tmp_path):
    assert said("fit", *SMALL, "data.synthetic.num_tasks=2", "train.max_epochs=1", f"output={tmp_path / 'run'}")[0] == 0
    make_frame({"a": 9, "b": 9}).to_parquet(tmp_path / "s.parquet")
    path = f"data.path={tmp_path / 's.parquet'}"
    assert "was begun without data.path" in said("export", tmp_path / "run", tmp_path / "out", path)[1]
    assert "was begun with None" in said("fit", "--resume", f"output={tmp_path / 'run'}", path)[1]


def test_a_run_on_the_embedded_base_takes_a_copy_of_it(tmp_path):
    assert said("fit", *SMALL, "data.synthetic.num_tasks=2", "train.max_epochs=1", f"output={tmp_path / 'run'}")[0] == 0
    from bora_sweep.model.base import model_folder

    config = config_of(tmp_path / "run")
    shutil.copytree(model_folder(config.model, config.data), tmp_path / "base")
    for command in (["export", tmp_path / "run", tmp_path / "out"], ["fit", "--resume", f"output={tmp_path / 'run'}"]):
        assert said(*command, f"model.name={tmp_path / 'base'}")[0] == 0
    assert str(tmp_path / "base") in (tmp_path / "out" / "_global" / "README.md").read_text()


def test_a_prompt_with_an_equals_sign_is_a_prompt(moved, model):
    run = moved / "runs" / "b"
    for words in (["w1=w2", model, "--task", "ann"], ["--task", "ann", model, "w1=w2"]):
        code, told = said("generate", run, *words, "--max-new-tokens", "2")
        assert code == 0, told
        assert told.startswith("w1=w2")
    code, told = said("generate", run, "w1", "w2", "--task", "ann", model)
    assert (code, "quotes around a prompt" in told) == (2, True)


def test_a_setting_that_an_option_took_for_a_task_is_named(moved, model):
    code, told = said("export", moved / "runs" / "b", moved / "out", "--task", "ann", model)
    assert (code, f"write {model} before --task" in told) == (2, True)


def test_a_task_leaves_a_run_whose_inputs_have_moved_and_the_run_knows_where_they_are(moved, model, data):
    run = moved / "runs" / "a"
    code, told = said("forget", run, "--task", "bob", model, data)
    assert code == 0, told
    config = config_of(run)
    assert (config.model.name, config.data.exclude_tasks) == (str(moved / "models" / "opt"), ["bob"])
    assert said("fit", "--resume", f"output={run}")[0] == 0
    assert set(read_results(run).task_scores["task"]) == {"ann", "cid"}


def test_trials_that_were_fitted_at_the_old_place_are_found_at_the_new_one_of_the_configuration(moved, model, data):
    run = moved / "runs" / "b"
    shutil.rmtree(run / "report")  # takes seconds to write again
    assert said("forget", run, "--task", "bob", model, data)[0] == 0
    assert all(str(moved) not in row["config_json"] for row in trial_rows(run))
    assert said("export", run, moved / "out")[0] == 0


def test_from_python(moved, model):
    run = moved / "runs" / "b"
    bora_sweep.export(run, moved / "out", tasks=["ann"], settings=[model])
    bora_sweep.export(run, moved / "out2", tasks=["ann"], settings=[{"model": {"name": str(moved / "models" / "opt")}}])
    assert contents(moved / "out") == contents(moved / "out2")
    with pytest.raises(InputError, match="takes only where things are now"):
        bora_sweep.export(run, moved / "out3", settings=["some.yaml"])
    texts = bora_sweep.generate(run, "w1 w2", "ann", max_new_tokens=2, settings=[model])
    assert texts["adapter"].tolist() == ["base model", "_global", "ann"]
    assert bora_sweep.read_results(run, [model]).adapter("ann").active_adapters == ["adapter_0"]
    with pytest.raises(InputError, match=r"model\.name=…"):
        bora_sweep.read_results(run).adapter("ann")


def test_new_tasks_are_added_where_everything_has_moved_and_that_run_moves_too(moved, model):
    command = commands(moved)["add"]
    assert said(*command, model, "train.max_epochs=1")[0] == 0
    (moved / "added").rename(moved / "added2")
    (moved / "runs" / "b").rename(moved / "runs" / "c")
    (moved / "models").rename(moved / "bases")
    (moved / "new.jsonl").rename(moved / "newer.jsonl")
    now = [f"model.name={moved / 'bases' / 'opt'}", f"data.path={moved / 'newer.jsonl'}"]
    added = moved / "added2"
    assert said("status", added)[0] == 0
    assert said("report", added)[0] == 0
    code, told = said("add", moved / "runs" / "c", "--resume", f"output={added}", *now)
    assert code == 0, told
    assert said("export", added, moved / "out")[0] == 0
    code, told = said("add", moved / "runs" / "a", "--resume", f"output={added}")
    assert (code, "was begun by adding to" in told) == (2, True)


def test_data_and_model_that_a_program_gave_move_with_the_run(tmp_path):
    frame = make_frame({"ann": 14, "bob": 12})
    settings = [*SMALL, "train.max_epochs=1", f"output={tmp_path / 'run'}"]
    model = make_base("opt", dtype=torch.float32)
    bora_sweep.fit(*settings, data=frame, model=model, tokenizer=make_tokenizer())
    (tmp_path / "run").rename(tmp_path / "moved")
    run = tmp_path / "moved"
    assert said("export", run, tmp_path / "out")[0] == 0
    assert said("fit", "--resume", f"output={run}")[0] == 0
    assert config_of(run).data.path == str(run / "data.parquet")
    assert str(tmp_path / "run") not in (run / "config.yaml").read_text().replace(str(run), "")
    bora_sweep.fit(f"output={run}", data=frame, model=model, tokenizer=make_tokenizer(), resume=True)
    shutil.rmtree(run / "base")
    code, told = said("export", run, tmp_path / "out2")
    assert (code, "model.name=…" in told) == (2, True)


@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_goes_on_where_everything_has_moved(tmp_path):
    inputs = make_inputs(tmp_path)
    sweep = ["train.max_epochs=1", "search.num_trials=1", "ray.max_concurrent=1", f"output={tmp_path / 'run'}"]
    assert said("sweep", *inputs, *sweep)[0] == 0
    before = read_results(tmp_path / "run").trials.set_index("trial_id")["validation_nll_nats"]
    new = tmp_path / "new"
    new.mkdir()
    for name in ("run", "base", "s.jsonl"):
        (tmp_path / name).rename(new / name)
    for part in ("trials/003", *(f"results/{table}/003.parquet" for table in ("trials", "task_scores"))):
        path = new / "run" / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    code, told = said("sweep", "--resume", f"output={new / 'run'}")
    assert (code, "model.name=…" in told) == (2, True)
    now = [f"model.name={new / 'base'}", f"data.path={new / 's.jsonl'}"]
    code, told = said("sweep", "--resume", f"output={new / 'run'}", *now)
    assert code == 0, told
    after = read_results(new / "run").trials.set_index("trial_id")["validation_nll_nats"]
    assert after.to_dict() == before.to_dict()
    assert said("export", new / "run", new / "out")[0] == 0  # trials of both places


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_what_is_written_has_the_modes_that_the_umask_gives(umask, tmp_path):
    before = os.umask(umask)
    try:
        place = tmp_path / "umask"
        place.mkdir()
        bora_sweep.fit(
            *SMALL, "train.max_epochs=1", f"output={place / 'run'}", data=make_frame({"a": 9, "b": 9}),
            model=make_base("opt", dtype=torch.float32), tokenizer=make_tokenizer(),
        )  # fmt: skip
        for form in ("", "--merge", "--bank"):
            assert said("export", place / "run", place / f"out{form}", *filter(None, [form]))[0] == 0
        assert said("pack", place / "run", place / "run.tar", "--with-base", "--with-data")[0] == 0
        assert said("forget", place / "out--bank", "--task", "a")[0] == 0
        save_checkpoint(place / "trial", 7, {"x": torch.zeros(2)}, {})
    finally:
        os.umask(before)
    kinds = {Path(name).suffix for name in contents(place)}
    assert kinds >= {".safetensors", ".parquet", ".json", ".tar", ".yaml"}
    for path in place.rglob("*"):
        wanted = (0o777 if path.is_dir() else 0o666) & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_modes_are_those_of_the_umask_whatever_wrote_the_file(tmp_path):
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a", b"1")
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "c").touch(mode=0o600)
        give_usual_modes(tmp_path)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a", tmp_path / "b" / "c")} == {0o640}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
