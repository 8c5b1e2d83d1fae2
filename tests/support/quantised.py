"""Tiny models in folders, to be quantised: wide enough for blocks of 64 weights."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tiny import VOCABULARY, make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from bora_sweep.config import ModelConfig
from bora_sweep.model.quantization import PACKAGE_OF

TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2}
LAYERS = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
LLAMA = {**TOKENS, **LAYERS, "intermediate_size": 128, "num_key_value_heads": 2}
OPT = {**TOKENS, **LAYERS, "ffn_dim": 128, "dropout": 0.0}
FAMILIES = {
    "llama": LLAMA,
    "opt": {**OPT, "word_embed_proj_dim": 64},
    "opt-350m": {**OPT, "word_embed_proj_dim": 128, "do_layer_norm_before": False},
    "gpt2": {**TOKENS, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "qwen2": LLAMA,
}
KINDS = [
    pytest.param(
        kind, marks=pytest.mark.skipif(find_spec(package) is None, reason=f"needs {package}, which is not installed")
    )
    for kind, package in PACKAGE_OF.items()
]
EXACT = [kind for kind in KINDS if kind.values != ("int8",)]
"""Those that compute with the inputs as they are."""
needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")


def make_wide(family: str, seed: int = 0) -> PreTrainedModel:
    """A random model of a family in float32, with weights large enough that its logits differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(family.partition("-")[0], **FAMILIES[family])
        base = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in base.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return base.eval()


def stored(folder: Path, family: str, kind: str | None, dtype: str = "float32") -> ModelConfig:
    """The configuration of `make_wide` with its tokenizer, in a folder."""
    if not (folder / "config.json").exists():
        make_wide(family).save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
    return ModelConfig(name=str(folder), quantization=kind, dtype=dtype)  # type: ignore[arg-type]
