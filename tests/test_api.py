"""The Python interface: what the command line does, by the same settings, and quick to import."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from chats import make_byte_tokenizer, make_chat_base
from datasets import Dataset, DatasetDict
from made_up_runs import write_run
from transformers import AutoModelForCausalLM, AutoTokenizer

import bora_sweep
from bora_sweep.cli import main
from bora_sweep.runs.run_lock import run_lock

TRAIN = {"max_epochs": 2, "device": "cpu", "learning_rate": 0.02}


@pytest.fixture(scope="module")
def sections(corpus_file, model_folder) -> dict:
    model = {"name": model_folder, "max_tokens": 16}  # a Path is as good as its text
    return {"data": {"path": corpus_file}, "model": model, "lora": {"rank": 2}, "train": TRAIN}


def test_it_is_imported_at_once_and_what_is_heavy_only_when_asked_for():
    code = (
        "import sys, bora_sweep\n"
        "heavy = {'pandas', 'numpy', 'torch', 'ray', 'transformers', 'optuna', 'matplotlib', 'yaml'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from bora_sweep import InputError, Results, read_results, fit, sweep\n"
        "assert not {'torch', 'ray', 'matplotlib'} & set(sys.modules)\n"
        "from bora_sweep import *\n"
        "assert callable(sweep) and callable(export) and Report\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_every_public_name_is_there_and_explains_itself():
    assert {"fit", "sweep", "read_results", "Report", "export"} <= set(bora_sweep.__all__) <= set(dir(bora_sweep))
    for name in set(bora_sweep.__all__) - {"__version__"}:
        assert len(getattr(bora_sweep, name).__doc__) > 20, name
    with pytest.raises(AttributeError, match="nothing_such"):
        bora_sweep.nothing_such  # noqa: B018
    assert (Path(bora_sweep.__file__).parent / "py.typed").exists()
    named = ast.parse(Path(bora_sweep.__file__).read_text())
    typed = [alias.name for node in ast.walk(named) if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert set(bora_sweep.__all__) - {"__version__"} <= set(typed)  # what a type checker sees


def test_a_fit_is_that_of_the_command_line(sections, tmp_path, capsys):
    results = bora_sweep.fit("prior.tau=30", **sections, output=tmp_path / "ours")
    assert isinstance(results, bora_sweep.Results)
    assert capsys.readouterr() == ("", "")
    flat = [f"{section}.{key}={value}" for section, values in sections.items() for key, value in values.items()]
    assert main(["fit", *flat, "prior.tau=30", f"output={tmp_path / 'theirs'}"]) == 0
    theirs = bora_sweep.read_results(tmp_path / "theirs")
    pd.testing.assert_frame_equal(
        results.document_scores.drop(columns="run"), theirs.document_scores.drop(columns="run")
    )
    again = bora_sweep.fit(resume=True, output=tmp_path / "ours", quiet=False)
    assert again.trials["started_at"].tolist() == results.trials["started_at"].tolist()
    assert "resuming" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "sections", "says"),
    [
        ((), {"prior": {"tua": 1}}, "tua"),
        ((), {"priors": {"tau": 1}}, "priors"),
        ((), {"prior": {"tau": -1}}, "prior.tau=-1"),
        (("nowhere.yaml",), {}, "nowhere.yaml: no such file"),
        ((), {"train": {"max_epochs": "many"}}, "many"),
        ((), {"data": {"path": "nowhere.parquet"}, "model": {"name": "x"}}, "nowhere.parquet"),
    ],
)
def test_wrong_settings_are_an_input_error(settings, sections, says, tmp_path):
    for function in (bora_sweep.fit, bora_sweep.sweep):
        with pytest.raises(bora_sweep.InputError, match=says):
            function(*settings, **{"output": tmp_path / "run", **sections})
    assert not (tmp_path / "run").exists()


def test_a_run_that_another_works_on_is_left_alone(sections, tmp_path):
    with run_lock(tmp_path, "fit"), pytest.raises(bora_sweep.InputError, match="works on it"):
        bora_sweep.fit(**sections, output=tmp_path)


def test_adapters_are_exported(sections, tmp_path):
    bora_sweep.fit(**sections, output=tmp_path / "run")
    names = bora_sweep.export(str(tmp_path / "run"), str(tmp_path / "out"), tasks=["ann"])
    assert names == {"ann": "ann"}
    assert (tmp_path / "out" / "ann" / "adapter_config.json").exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


def test_a_report_in_python_is_the_report_on_disk(run):
    report = bora_sweep.Report(run)
    page = report.write()
    text = page.read_text()
    assert report.answer in text
    assert report._repr_markdown_() == report.answer
    for name, frame in (
        ("table_1", report.overall),
        ("table_a1", report.by_task),
        ("improvements", report.improvements),
    ):
        written = pd.read_csv(str(page.parent / "tables" / f"{name}.csv"))
        assert list(written.columns) == list(frame.columns)
        for column in frame.select_dtypes("number"):
            np.testing.assert_allclose(frame[column].astype(float), written[column].astype(float))
    assert sorted(f"{name}.png" for name in report.figures) == sorted(
        path.name for path in (page.parent / "figures").glob("*.png")
    )
    assert report.best_tau == report.overall.loc[report.overall["best"], "tau"].item()
    assert len(report.trials) == len(report.results.trials)
    assert report.methods.empty


def test_a_report_takes_what_is_read_or_several_runs(run, tmp_path):
    results = bora_sweep.read_results(run)
    assert bora_sweep.Report(results).answer == bora_sweep.Report([run]).answer
    with pytest.raises(bora_sweep.InputError, match="not a run's folder"):
        bora_sweep.Report(tmp_path)


@pytest.fixture
def chats(tmp_path):
    """Conversations as rows, and a tiny model with its tokenizer, in a folder."""
    tokenizer = make_byte_tokenizer()
    make_chat_base("llama", tokenizer, torch.float32).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return [
        {"who": who, "messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{who} {n}"}]}
        for n in range(8)
        for who in ("ann", "bob")
    ]


CHAT = ["data.task_column=who", "model.max_tokens=64", "lora.rank=2", "train.max_epochs=1", "train.device=cpu"]


def loaded(folder: Path):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def test_a_frame_or_a_data_set_is_as_good_as_its_file(chats, tmp_path):
    pd.DataFrame(chats).to_json(tmp_path / "x.jsonl", orient="records", lines=True)
    model = {"name": str(tmp_path / "base")}
    file = bora_sweep.fit(*CHAT, data={"path": tmp_path / "x.jsonl"}, model=model, output=tmp_path / "file")
    split = Dataset.from_list(chats).train_test_split(0.5, shuffle=False)
    given = {"frame": pd.DataFrame(chats), "set": Dataset.from_list(chats), "splits": split}
    for name, data in given.items():
        results = bora_sweep.fit(*CHAT, data=data, model=model, output=tmp_path / name)
        config = bora_sweep.load_config([str(tmp_path / name / "config.yaml")])
        assert config.data.path == str(tmp_path / name / "data.parquet")
        if name == "splits":
            assert config.data.test_path == str(tmp_path / name / "test.parquet")
            assert len(results.document_scores.query("split == 'test'")) == 8
            continue
        ours, theirs = (found.document_scores.drop(columns="run") for found in (results, file))
        pd.testing.assert_frame_equal(ours, theirs)
    resumed = bora_sweep.fit(data=pd.DataFrame(chats), output=tmp_path / "frame", resume=True)
    assert resumed.trials["status"].tolist() == ["finished"]
    with pytest.raises(bora_sweep.InputError, match=r"data: differs from .*data\.parquet, with which the run began"):
        bora_sweep.fit(data=pd.DataFrame(chats[2:]), output=tmp_path / "frame", resume=True)


def test_a_loaded_model_is_fitted_as_it_is_and_given_back(chats, tmp_path):
    data = pd.DataFrame(chats)
    named = bora_sweep.fit(*CHAT, data=data, model={"name": str(tmp_path / "base")}, output=tmp_path / "named")
    model, tokenizer = loaded(tmp_path / "base")
    model.train()
    same = bora_sweep.fit(*CHAT, data=data, model=model, tokenizer=tokenizer, output=tmp_path / "same")
    pd.testing.assert_series_equal(same.document_scores["nll_nats"], named.document_scores["nll_nats"])
    assert bora_sweep.load_config([str(tmp_path / "same/config.yaml")]).model.name == str(tmp_path / "base")
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    other = bora_sweep.fit(*CHAT, data=data, model=model, tokenizer=tokenizer, output=tmp_path / "other")
    assert bora_sweep.load_config([str(tmp_path / "other/config.yaml")]).model.name == str(tmp_path / "other/base")
    assert (other.document_scores["nll_nats"] - named.document_scores["nll_nats"]).abs().max() > 0.1
    bora_sweep.export(tmp_path / "other", tmp_path / "out")


def test_objects_that_are_none_of_these_are_refused_and_leave_nothing(chats, tmp_path):
    frame, (model, _) = pd.DataFrame(chats), loaded(tmp_path / "base")
    run = tmp_path / "run"
    for options, says in (
        ({"data": [1, 2]}, "data=list: give a DataFrame, a Dataset"),
        ({"data": frame, "model": model}, "loaded and its tokenizer"),
        ({"data": frame, "tokenizer": 1}, "tokenizer: goes with a model"),
        ({"data": DatasetDict({"dev": Dataset.from_list(chats)})}, "the split 'dev'"),
        ({"data": frame.rename(columns={"who": "x"}), "model": {"name": str(tmp_path / "base")}}, "no column 'who'"),
        ({"data": frame.assign(messages=[1, "a"] * 8), "model": {"name": "x"}}, "cannot be written as Parquet"),
    ):
        with pytest.raises(bora_sweep.InputError, match=says):
            bora_sweep.fit(*CHAT, **options, output=run)
        assert not run.exists()
    with pytest.raises(bora_sweep.InputError, match="a sweep loads its base in many processes"):
        bora_sweep.sweep(*CHAT, data=frame, model=model, output=run)
