"""`model.dtype=auto`: bfloat16 where a fit has a GPU that computes in it, else float32; what was chosen is kept."""

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

import bora_sweep
from bora_sweep.config import ModelConfig, load_config
from bora_sweep.model.base import weights_dtype
from bora_sweep.report.text.notes import _compares_with_its_like, _types_of_weights
from bora_sweep.runs.storage import folder_at
from bora_sweep.serve.load import load_trial


@pytest.mark.parametrize(
    ("has_gpu", "computes", "expected"),
    [(True, True, torch.bfloat16), (True, False, torch.float32), (False, True, torch.float32)],
)
def test_auto_is_bfloat16_where_a_gpu_computes_in_it(has_gpu, computes, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: computes)
    assert weights_dtype(ModelConfig()) == expected
    assert weights_dtype(ModelConfig(dtype="float64")) == torch.float64


def test_a_fit_on_the_cpu_of_a_machine_with_a_gpu_is_in_float32():
    assert load_config(["train.device=cpu"]).model.dtype == "float32"
    assert load_config(["train.device=cpu", "model.dtype=bfloat16"]).model.dtype == "bfloat16"
    assert load_config([]).model.dtype == "auto"


def test_a_run_keeps_what_was_chosen_and_its_adapters_are_served_on_it(
    corpus_file, model_folder, tmp_path, monkeypatch
):
    """The machine that fits takes bfloat16; the one that serves would take float32."""
    monkeypatch.setattr("bora_sweep.model.base.weights_dtype", lambda _: torch.bfloat16)
    results = bora_sweep.fit(
        data={"path": corpus_file}, model={"name": model_folder, "max_tokens": 16}, lora={"rank": 2},
        train={"max_epochs": 1}, output=tmp_path / "run",
    )  # fmt: skip
    assert results.trials["dtype"].tolist() == ["bfloat16"]
    monkeypatch.undo()
    config = load_trial(folder_at(tmp_path / "run")).config
    assert weights_dtype(config.model) == torch.bfloat16


def test_the_report_says_where_trials_do_not_compare():
    def summary(*dtypes: str | None, **model: Any) -> Any:
        stored = load_config([{"model": model}]).to_json()
        return SimpleNamespace(trials=pd.DataFrame({"status": "finished", "dtype": dtypes, "config_json": stored}))

    assert _types_of_weights(summary("float32", "float32", None)) == ""
    assert "1 in bfloat16, 2 in float32" in _types_of_weights(summary("float32", "bfloat16", "float32"))
    assert _compares_with_its_like(summary("float32")) == ""
    assert "nf4" in _compares_with_its_like(summary("float32", quantization="nf4"))
    chunks = _compares_with_its_like(summary("float32", long_documents="chunk", max_tokens=32, chunk_overlap=9))
    assert "longer than 32 tokens" in chunks
    assert "share 9 tokens" in chunks
