"""A bank holds the adapters of the folders bit for bit, and the code in its card loads them."""

import json
import re
import shutil

import pandas as pd
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import make_base, make_frame, make_tokenizer
from transformers import AutoModelForCausalLM

from bora_sweep.cli import main
from bora_sweep.serve import bank as module

TASKS = {"Ann <b>|": 16, "b'b": 14, "漢": 14, "../up": 14}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run, its folders, and its bank."""
    folder = tmp_path_factory.mktemp("bank")
    make_base("opt", dtype=torch.float32).save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    make_frame(TASKS).to_parquet(folder / "speeches.parquet")
    assert main(["fit", *settings(folder), f"output={folder / 'run'}"]) == 0
    assert main(["export", str(folder / "run"), str(folder / "folders")]) == 0
    assert main(["export", str(folder / "run"), str(folder / "bank"), "--bank"]) == 0
    return folder


def settings(folder) -> list[str]:
    own = ["lora.rank=2", "lora.alpha=3", "train.max_epochs=1", "train.learning_rate=0.03", "prior.tau=10"]
    paths = [f"data.path={folder / 'speeches.parquet'}", f"model.name={folder / 'base'}"]
    return [*paths, *own, "model.max_tokens=12", "train.device=cpu", "lora.target_modules=all-linear"]


def read(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def rows_equal_folders(folders, bank) -> None:
    named, folder_of = load_file(bank / "adapters.safetensors"), read(folders / "tasks.json")
    row_of = read(bank / "tasks.json")
    assert list(row_of.values()) == list(range(len(row_of)))
    assert all(len(tensor) == len(row_of) and tensor.dtype == torch.float32 for tensor in named.values())
    for task, row in row_of.items():
        own = load_file(folders / folder_of[task] / "adapter_model.safetensors")
        assert own.keys() == named.keys()
        assert all(torch.equal(named[name][row], tensor) for name, tensor in own.items())


def test_a_bank_has_the_adapters_of_the_folders(place):
    rows_equal_folders(place / "folders", place / "bank")
    files = {"README.md", "_global", "adapter_config.json", "adapters.safetensors", "documents.parquet", "tasks.json"}
    assert {path.name for path in (place / "bank").iterdir()} == files
    assert read(place / "bank" / "adapter_config.json") == read(place / "folders" / "_global" / "adapter_config.json")
    of_theta = [load_file(place / kind / "_global" / "adapter_model.safetensors") for kind in ("folders", "bank")]
    assert all(torch.equal(of_theta[0][name], of_theta[1][name]) for name in of_theta[0].keys() | of_theta[1].keys())
    own = load_file(place / "bank" / "adapters.safetensors").values()
    assert any(not torch.equal(tensor[0], tensor[1]) for tensor in own)  # tasks differ


@torch.no_grad()
def test_the_code_in_its_card_loads_what_peft_loads_of_a_folder(place, monkeypatch):
    card = (place / "bank" / "README.md").read_text(encoding="utf-8")
    assert "# Adapters for 4 tasks" in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    monkeypatch.chdir(place)
    scope = {}
    exec(code[1], scope)
    ids = torch.tensor([[2, 5, 9, 20, 11]])
    folder_of, seen = read(place / "folders" / "tasks.json"), []
    for task in [None, *reversed(TASKS)]:  # the first is the one that the code itself takes
        if task is not None:
            scope["use"](task)
        base = AutoModelForCausalLM.from_pretrained(place / "base")
        folder = folder_of[task or next(iter(read(place / "bank" / "tasks.json")))]
        expected = PeftModel.from_pretrained(base, place / "folders" / folder).eval()(input_ids=ids).logits
        seen.append(scope["model"](input_ids=ids).logits)
        assert torch.equal(seen[-1], expected)
    assert not torch.equal(seen[1], seen[2])


def test_some_tasks_are_the_rows_of_a_bank(place, tmp_path, capsys):
    names = ["漢", "b'b"]
    assert main(["export", str(place / "run"), str(tmp_path / "some"), "--bank", "--task", *names]) == 0
    assert "a bank of adapters of _global and 2 tasks" in capsys.readouterr().out
    assert set(read(tmp_path / "some" / "tasks.json")) == set(names)
    rows_equal_folders(place / "folders", tmp_path / "some")


def test_blocks_of_adapters_meet_in_one_tensor(place, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 3)
    assert main(["export", str(place / "run"), str(tmp_path / "out"), "--bank"]) == 0
    rows_equal_folders(place / "folders", tmp_path / "out")


def test_a_bank_that_differs_from_the_fit_leaves_nothing(place, tmp_path, monkeypatch, capsys):
    def spoil(tensors, file, metadata) -> None:
        next(iter(tensors.values()))[1] += 1e-6
        save_file(tensors, file, metadata)

    monkeypatch.setattr(module, "save_file", spoil)
    assert main(["export", str(place / "run"), str(tmp_path / "out"), "--bank"]) == 2
    assert "not as it was fitted" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_a_bank_is_refused(place, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["export", str(place / "run"), str(tmp_path / "out"), "--bank", "--merge"])
    assert ended.value.code == 2
    assert "not allowed with argument" in capsys.readouterr().err
    again = [*settings(place), f"init_from={place / 'bank'}", f"output={tmp_path / 'again'}"]
    assert main(["fit", *again]) == 2
    assert "export again without --bank" in capsys.readouterr().err
    mora = [*settings(place), "lora.variant=mora", "lora.alpha=null", f"output={tmp_path / 'mora'}"]
    assert main(["fit", *mora]) == 0
    assert main(["export", str(tmp_path / "mora"), str(tmp_path / "out"), "--bank"]) == 2
    assert "PEFT has no lora.variant=mora; drop --bank" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "again").exists()


def test_a_task_leaves_a_bank_and_the_rows_of_the_others_stay(place, tmp_path, capsys):
    shutil.copytree(place / "bank", tmp_path / "bank")
    before, row_of = load_file(place / "bank" / "adapters.safetensors"), read(place / "bank" / "tasks.json")
    assert main(["forget", str(tmp_path / "bank"), "--task", "b'b"]) == 0
    assert "rows of the bank are 0" in capsys.readouterr().out
    after = load_file(tmp_path / "bank" / "adapters.safetensors")
    gone = row_of.pop("b'b")
    assert read(tmp_path / "bank" / "tasks.json") == row_of
    for name, tensor in after.items():
        assert not tensor[gone].any()
        assert before[name][gone].any() or "lora_B" in name
        assert all(torch.equal(tensor[row], before[name][row]) for row in row_of.values())
    assert "b'b" not in (tmp_path / "bank" / "README.md").read_text(encoding="utf-8")
    assert "b'b" not in set(pd.read_parquet(tmp_path / "bank" / "documents.parquet")["task"])
