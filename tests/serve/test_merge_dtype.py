"""Merged models have the type of the base's files, and a rounding that could lose the adapter is told."""

import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_base, make_frame, make_tokenizer
from transformers import AutoModelForCausalLM

from bora_sweep.cli import main
from bora_sweep.errors import InputError
from bora_sweep.model.base import dtype_of_files
from bora_sweep.model.full_model import merged_weights, write_full
from bora_sweep.serve import export as exporting
from bora_sweep.serve.export import export
from bora_sweep.serve.load import load_trial


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A fit in float32 on a base whose files are in bfloat16."""
    folder = tmp_path_factory.mktemp("merge")
    make_base("llama", dtype=torch.bfloat16).save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    make_frame({"ann": 16, "bob": 14}).to_parquet(folder / "speeches.parquet")
    settings = [f"data.path={folder / 'speeches.parquet'}", f"model.name={folder / 'base'}", "model.max_tokens=9",
                "train.max_epochs=1", "train.device=cpu", "train.learning_rate=0.003", "lora.rank=2"]  # fmt: skip
    for name, own in {"run": [], "narrow": ["model.dtype=bfloat16"]}.items():
        assert main(["fit", *settings, *own, f"output={folder / name}"]) == 0
    return folder


def test_a_merge_is_rounded_once_to_the_type_of_the_bases_files(place, tmp_path):
    export(place / "run", tmp_path / "out", merge=True, tasks=["ann"])
    loaded = load_trial(place / "run")
    assert loaded.config.model.dtype == "float32"
    base = make_base("llama", dtype=torch.bfloat16).to(torch.float32)
    exact = merged_weights(base, loaded.layout, loaded.theta_of["ann"])
    written = load_file(tmp_path / "out" / "ann" / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    for name, weight in exact.items():
        assert torch.equal(written[name], weight.to(torch.bfloat16)), name
    own = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "ann", dtype="auto")
    assert own.dtype == torch.bfloat16
    assert "dtype=torch.bfloat16" in (tmp_path / "out" / "ann" / "README.md").read_text()


def test_another_type_can_be_asked_for_and_float32_loses_nothing(place, tmp_path, capsys):
    arguments = ["export", str(place / "run"), str(tmp_path / "wide"), "--merge", "--dtype", "float32"]
    assert main(arguments) == 0
    assert "may lose the adapter" not in capsys.readouterr().out
    written = load_file(tmp_path / "wide" / "ann" / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}
    loaded = load_trial(place / "run")
    base = make_base("llama", dtype=torch.bfloat16).to(torch.float32)
    for name, weight in merged_weights(base, loaded.layout, loaded.theta_of["ann"]).items():
        assert torch.equal(written[name], weight)
    for more in (["--dtype", "float32"], ["--bank", "--dtype", "float32"]):
        assert main(["export", str(place / "run"), str(tmp_path / "x"), *more]) == 2
        assert "--dtype float32" in capsys.readouterr().err
        assert not (tmp_path / "x").exists()


def test_a_rounding_that_may_lose_the_adapter_is_told_on_the_console_in_the_card_and_in_the_log(
    place, tmp_path, capsys, caplog
):
    """One epoch at a low rate hardly moves an adapter."""
    assert main(["export", str(place / "run"), str(tmp_path / "out"), "--merge"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert re.search(r"rounds weights to bfloat16, which may lose the adapter in 3 models of 3: it changes logits by "
                     r"up to \d+% of the adapter's effect \(\w+\); --dtype float32 keeps it", told)  # fmt: skip
    card = (tmp_path / "out" / "ann" / "README.md").read_text()
    assert "it is rounded to bfloat16, which changes logits by" in card
    export(place / "run", tmp_path / "again", merge=True)
    assert [record.name.partition(".")[0] for record in caplog.records if "may lose" in record.message] == [
        "bora_sweep"
    ]


def test_a_base_that_the_fit_had_in_a_narrower_type_is_merged_as_the_fit_had_it(place, tmp_path):
    wide = place / "wide_base"
    if not wide.exists():
        make_base("llama", dtype=torch.bfloat16).to(torch.float32).save_pretrained(wide)
    (place / "base").rename(place / "kept")
    wide.rename(place / "base")
    try:
        loaded = load_trial(place / "narrow")
        assert loaded.config.model.dtype == "bfloat16"
        assert dtype_of_files(loaded.config.model, loaded.config.data) == torch.float32
    finally:
        (place / "base").rename(wide)
        (place / "kept").rename(place / "base")
    export(place / "narrow", tmp_path / "out", merge=True, tasks=["ann"])
    written = load_file(tmp_path / "out" / "ann" / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}


@pytest.mark.parametrize("named", [True, False])
def test_the_type_of_files_is_that_of_config_json_or_of_the_weights(named, tmp_path):
    from bora_sweep.config import DataConfig, ModelConfig

    make_base("opt", dtype=torch.float16).save_pretrained(tmp_path)
    if not named:
        text = (tmp_path / "config.json").read_text()
        (tmp_path / "config.json").write_text(re.sub(r'\s*"(torch_)?dtype": "\w+",', "", text))
        assert "dtype" not in (tmp_path / "config.json").read_text()
    assert dtype_of_files(ModelConfig(name=str(tmp_path)), DataConfig(path="x")) == torch.float16


def test_what_the_rounding_takes_grows_as_the_adapter_shrinks(tmp_path):
    """Merging in bfloat16, each error measured apart from that of passes in bfloat16."""
    from bora_sweep.config import LoraConfig
    from bora_sweep.model.layout import make_layout

    base = make_base("llama", dtype=torch.bfloat16)
    layout = make_layout(base, LoraConfig(rank=2, target_modules="all-linear"))
    theta_P = layout.initial(base, 0).float() + 0.1 * torch.randn(
        layout.num_parameters, generator=torch.Generator().manual_seed(1)
    )
    errors = [
        write_full(tmp_path / str(size), base, layout, theta_P * size).rounding_error for size in (1, 0.3, 0.1, 0.01)
    ]
    assert errors == sorted(errors)
    assert errors[0] < 0.2
    assert errors[-1] > 0.5
    exact = write_full(tmp_path / "float32", base, layout, theta_P * 0.01, torch.float32)
    assert exact.dtype == "float32"
    assert exact.rounding_error < 0.05


@pytest.mark.parametrize(("error", "is_told"), [(0.0, False), (0.099, False), (0.1, True), (0.3, True), (0.7, True)])
def test_a_tenth_of_the_adapters_effect_is_what_a_rounding_may_take_untold(
    error, is_told, place, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(exporting, "write_full", lambda *given: replace(write_full(*given), rounding_error=error))
    export(place / "run", tmp_path / "out", merge=True)
    told = [record.message for record in caplog.records if "may lose the adapter in 3 models of 3" in record.message]
    assert len(told) == is_told
    assert all(f"by up to {error:.0%} of" in note for note in told)


def test_a_weight_that_a_type_cannot_hold_is_refused():
    from bora_sweep.config import LoraConfig
    from bora_sweep.model.layout import make_layout

    base = make_base("opt", dtype=torch.float16)
    layout = make_layout(base, LoraConfig(rank=2))
    with pytest.raises(InputError, match=r"has weights beyond torch.float16; give --dtype float32"):
        merged_weights(base, layout, torch.full((layout.num_parameters,), 300.0))
