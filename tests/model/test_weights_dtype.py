"""`model.dtype=auto`: bfloat16 where a fit has a GPU that computes in it, else float32; what was chosen is kept."""

import pytest
import torch

from bora_sweep.config import ModelConfig, load_config
from bora_sweep.model.base import weights_dtype


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
