"""Baselines that other settings rule out end with exit code 2, one message and nothing written."""

import pytest

from bora_sweep.cli import main
from bora_sweep.config import load_config

REFUSED = [
    ("fedsa", "train.update=present", "train.update=present"),
    ("fedsa", "train.bank=host", "train.bank=host"),
    ("fedsa", "train.initial_noise=0.1", "train.initial_noise=0.1: is of adapters that share nothing"),
    ("fedsa", "train.independent=joint", "train.independent=joint: is of adapters that share nothing"),
    ("fedsa", "lora.variant=dora", "lora.variant=dora: fedsa shares A"),
    ("fedsa", "lora.variant=mora", "lora.variant=mora: fedsa shares A"),
    ("shared_wide", "lora.variant=mora", "lora.variant=mora: its square matrix"),
    ("shared_wide", "search.wide_rank=0", "search.wide_rank=0"),
    ("task_prompt", "data.prompt={task}", "gives a prompt of its own"),
    ("task_prompt", "data.template={task} says {text}", "names it too"),
    ("task_prompt", "model.long_documents=chunk", "reads texts in pieces"),
    ("task_prompt", "metrics=[exact_match]", "scores answers without it"),
    ("task_prompt", "train.padding=scored", "scores padding of other lengths"),
    ("task_prompt", "search.task_prompt=hello", "need {task} and no other name"),
    ("task_prompt", "search.task_prompt={task} {topic}", "need {task} and no other name"),
]


@pytest.mark.parametrize(("name", "setting", "said"), REFUSED)
def test_a_baseline_that_could_not_be_right_is_refused(name, setting, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ["train.device=cpu", setting, f"search.baselines=[independent,shared,{name}]"]
    assert main(["sweep", *settings, "output=run"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert said in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["fedsa", "shared_wide", "task_prompt"])
def test_it_is_a_fit_of_a_sweep_alone(name, tmp_path, capsys):
    assert main(["fit", f"method={name}", "train.device=cpu", f"output={tmp_path / 'run'}"]) == 2
    assert f"search.baselines=[…,{name}]" in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_what_rules_out_one_baseline_is_no_matter_without_it():
    settings = [setting for _, setting, _ in REFUSED if setting.startswith(("lora", "train.initial", "data.prompt"))]
    assert all(load_config([setting, "train.device=cpu"]) for setting in settings)
