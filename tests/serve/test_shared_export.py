"""Where all tasks have one adapter it is written once, and whatever reads an export follows tasks.json."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_base, make_frame, make_tokenizer

from bora_sweep.cli import main
from bora_sweep.model.peft_io import read_adapters
from bora_sweep.serve.load import load_trial

TASKS = {"ann": 16, "bob": 14, "cid": 14}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A fit at tau = inf."""
    folder = tmp_path_factory.mktemp("shared")
    make_base("opt", dtype=torch.float32).save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    make_frame(TASKS).to_parquet(folder / "speeches.parquet")
    assert main(["fit", *settings(folder), "prior.tau=inf", f"output={folder / 'run'}"]) == 0
    return folder


def settings(folder) -> list[str]:
    own = ["lora.rank=2", "train.max_epochs=1", "train.learning_rate=0.03", "model.max_tokens=12", "train.device=cpu"]
    return [f"data.path={folder / 'speeches.parquet'}", f"model.name={folder / 'base'}", *own]


def read(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("form", [[], ["--merge"]])
def test_it_is_one_folder_whose_card_has_the_scores_of_all(form, place, tmp_path, capsys):
    assert main(["export", str(place / "run"), str(tmp_path / "out"), *form, "--task", "ann", "bob"]) == 0
    assert "all tasks share one adapter, which is written once" in " ".join(capsys.readouterr().out.split())
    assert read(tmp_path / "out" / "tasks.json") == {"ann": "_global", "bob": "_global"}
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == ["_global"]
    card = (tmp_path / "out" / "_global" / "README.md").read_text(encoding="utf-8")
    assert "the one adapter of all tasks of the fit" in card
    assert "this adapter (τ = ∞, one model for all)" in card


def test_a_fit_starts_from_it(place, tmp_path):
    assert main(["export", str(place / "run"), str(tmp_path / "out")]) == 0
    loaded = load_trial(place / "run")
    mean_P, theta_KP = read_adapters(tmp_path / "out", loaded.layout, loaded.lora, ["ann", "new", "cid"])
    assert torch.equal(mean_P, loaded.mean_P)
    assert torch.equal(theta_KP, mean_P.expand(3, -1))


def test_a_task_leaves_it_and_the_others_keep_their_adapter(place, tmp_path, capsys):
    for number, form in enumerate(([], ["--bank"])):
        out = tmp_path / str(number)
        assert main(["export", str(place / "run"), str(out), *form]) == 0
        weights = out / "adapters.safetensors" if form else out / "_global" / "adapter_model.safetensors"
        before = load_file(weights)
        assert main(["forget", str(out), "--task", "bob"]) == 0
        assert set(read(out / "tasks.json")) == {"ann", "cid"}
        assert "rows of the bank are 0" not in capsys.readouterr().out
        after = load_file(weights)
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        assert any(tensor.any() for tensor in after.values())


def test_a_bank_of_it_has_one_row(place, tmp_path):
    assert main(["export", str(place / "run"), str(tmp_path / "bank"), "--bank"]) == 0
    assert read(tmp_path / "bank" / "tasks.json") == dict.fromkeys(TASKS, 0)
    rows, own = (load_file(tmp_path / "bank" / name) for name in (
        "adapters.safetensors", "_global/adapter_model.safetensors"
    ))  # fmt: skip
    assert all(torch.equal(rows[name], tensor[None]) for name, tensor in own.items())


def test_adapters_that_differ_by_one_number_are_not_shared(place):
    loaded = load_trial(place / "run")
    assert loaded.is_shared
    other = loaded.mean_P.clone()
    other[-1] += 1e-6
    from dataclasses import replace

    assert not replace(loaded, theta_of=loaded.theta_of | {"cid": other}).is_shared
