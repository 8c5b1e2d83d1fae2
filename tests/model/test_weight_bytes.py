"""Bytes of weights as they are stored, plain and quantised."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from bora_sweep.model.weight_bytes import dense_bytes, stored_bytes

GEOMETRY = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
LINEAR = 2 * (4 * 256 * 256 + 3 * 256 * 512)
REST = 2 * 1000 * 256 + 5 * 256  # embeddings, head and norms


@pytest.fixture
def base() -> nn.Module:
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(vocab_size=1000, **GEOMETRY)).bfloat16()


def test_plain_weights_have_the_bytes_of_their_types(base):
    assert stored_bytes(base, None) == 2 * (LINEAR + REST)
    assert stored_bytes(base.float(), None) == 4 * (LINEAR + REST)
    assert dense_bytes(base, None) == 0


def test_nf4_has_a_scale_of_a_byte_for_64_weights_and_a_scale_of_four_for_256_scales(base):
    bits = 8 * (stored_bytes(base, "nf4") - 2 * REST) / LINEAR
    assert bits == pytest.approx(4 + 8 / 64 + 32 / (64 * 256))
    assert round(bits, 3) == 4.127


def test_int8_has_a_scale_for_each_row_and_fp8_one_for_each_square(base):
    rows = 2 * (4 * 256 + 2 * 512 + 256)
    squares = 2 * (4 * 2 * 2 + 3 * 2 * 4)
    assert stored_bytes(base, "int8") == 2 * REST + LINEAR + 4 * rows
    assert stored_bytes(base, "fp8") == 2 * REST + LINEAR + 4 * squares


def test_the_largest_layer_is_whole_while_it_is_used(base):
    assert dense_bytes(base, "nf4") == 2 * 256 * 512
