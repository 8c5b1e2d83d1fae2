"""Exported folders load into PEFT and give the logits that the adapters gave here; names are never trusted as paths."""

import json
from dataclasses import asdict

import pytest
import torch
from conftest import VOCABULARY, make_base
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file

from bora_sweep.cli import main
from bora_sweep.config import LoraConfig
from bora_sweep.errors import InputError
from bora_sweep.model.adapters import AdaptedModel, make_layout
from bora_sweep.model.interchange import GLOBAL, export_adapters, safe_names

TASKS = ["romeo", "../../etc", "Ann", "ann", "_global", "李白"]


def made_adapters(base, config: LoraConfig, dtype: torch.dtype):
    """Random adapters of TASKS and Theta, with what a trial's file says of them."""
    layout = make_layout(base, config)
    theta_KP = layout.initial(base, 0, dtype) + 0.3 * torch.randn(len(TASKS), layout.num_parameters, dtype=dtype)
    about = {"tasks": TASKS, "model": None, "lora": asdict(config), "sites": [asdict(site) for site in layout.sites]}
    return layout, {"mean_P": theta_KP.mean(0), "theta_KP": theta_KP}, json.loads(json.dumps(about))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("variant", ["lora", "rslora", "lora_plus", "dora"])
@pytest.mark.parametrize("family", ["opt", "gpt2", "llama"])
def test_peft_reads_what_is_exported(family, variant, dtype, tolerance, tmp_path):
    base = make_base(family, dtype=dtype)
    config = LoraConfig(variant=variant, rank=3, alpha=5.0, target_modules="all-linear")
    layout, tensors, about = made_adapters(base, config, dtype)
    folders = export_adapters(tensors, about, tmp_path / "out")
    assert list(folders) == TASKS
    assert json.loads((tmp_path / "out" / "index.json").read_text(encoding="utf-8")) == folders
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*folders.values(), GLOBAL, "index.json"}
    tokens_BT = torch.randint(VOCABULARY, (2, 9))
    adapted = AdaptedModel(base, layout)
    for folder, theta_P in [(GLOBAL, tensors["mean_P"]), (folders["李白"], tensors["theta_KP"][TASKS.index("李白")])]:
        expected = adapted(tokens_BT, theta_P[None])
        peft = PeftModel.from_pretrained(make_base(family, dtype=dtype), tmp_path / "out" / folder).eval()
        torch.testing.assert_close(peft(input_ids=tokens_BT).logits, expected, rtol=0, atol=tolerance)


def test_peft_would_have_written_the_same_names(tmp_path):
    base = make_base("gpt2")
    _, tensors, about = made_adapters(base, LoraConfig(variant="dora", rank=2), torch.float64)
    export_adapters(tensors, about, tmp_path / "out")
    PeftModel.from_pretrained(base, tmp_path / "out" / GLOBAL).save_pretrained(tmp_path / "peft")
    ours, theirs = (
        load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "out" / GLOBAL, tmp_path / "peft")
    )
    assert {name: part.shape for name, part in ours.items()} == {name: part.shape for name, part in theirs.items()}


def test_mora_is_exported_as_what_it_is(tmp_path):
    base = make_base("llama")
    layout, tensors, about = made_adapters(base, LoraConfig(variant="mora", rank=2), torch.float64)
    folders = export_adapters(tensors, about, tmp_path / "out", ["romeo"])
    assert list(folders) == ["romeo"]
    assert "not a PEFT adapter" in json.loads((tmp_path / "out" / "romeo" / "config.json").read_text())["format"]
    read = load_file(tmp_path / "out" / "romeo" / "mora.safetensors")
    for name, parts in layout.split(tensors["theta_KP"][0]).items():
        assert torch.equal(read[name], parts["M"])


@given(tasks=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), min_size=1, unique=True))
@settings(max_examples=200, deadline=None)
def test_folder_names_are_plain_and_unique_on_any_file_system(tasks):
    names = safe_names(tasks)
    assert list(names) == tasks
    assert len({name.lower() for name in [*names.values(), GLOBAL]}) == len(tasks) + 1
    for name in names.values():
        assert name.isascii()
        assert name[0].isalnum()
        assert len(name) <= 64
        assert not set(name) & set("/\\: \0\n")


def test_plain_names_stay_as_they_are():
    names = safe_names([*TASKS, "ann.b"])
    assert names["romeo"] == "romeo"
    assert all(names[task] != task for task in [*TASKS[1:], "ann.b"])


def test_what_cannot_be_exported_is_refused(tmp_path):
    base = make_base("opt")
    _, tensors, about = made_adapters(base, LoraConfig(rank=2), torch.float32)
    with pytest.raises(InputError, match=r"--task juliet: .*romeo"):
        export_adapters(tensors, about, tmp_path / "out", ["romeo", "juliet"])
    assert not (tmp_path / "out").exists()
    export_adapters(tensors, about, tmp_path / "out")
    with pytest.raises(InputError, match="not empty"):
        export_adapters(tensors, about, tmp_path / "out")


def test_the_command_exports_the_best_trial_and_says_what_is_wrong(corpus_file, model_folder, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    fit = [f"data.path={corpus_file}", f"model.name={model_folder}", "model.max_tokens=16", "lora.rank=2",
           "lora.variant=dora", "train.max_epochs=1", "train.device=cpu", f"output={run}"]  # fmt: skip
    assert main(["fit", *fit]) == 0
    assert main(["export", str(run), str(out), "--task", "bob", "--task", "ann"]) == 0
    assert json.loads((out / "index.json").read_text()) == {"ann": "ann", "bob": "bob"}
    assert json.loads((out / "ann" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(model_folder)
    capsys.readouterr()
    for arguments, says in [
        ([str(tmp_path / "nowhere"), str(tmp_path / "x")], "nowhere"),
        ([str(run), str(tmp_path / "x"), "--trial", "../fit"], "it has fit"),
        ([str(run), str(tmp_path / "x"), "--task", "eve"], "--task eve"),
        ([str(run), str(out)], "not empty"),
    ]:
        assert main(["export", *arguments]) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_export_s_help_teaches(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["export", "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("RUN", "OUT", "--trial", "best", "--task", "_global", "index.json"))
