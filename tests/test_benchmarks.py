"""What the speed benchmarks compare is the same computation, and what they count is what is computed."""

from dataclasses import replace

import pytest
import torch
from arguments import start
from geometry import GEOMETRIES, Geometry
from loops import Ours
from mfu import flops_per_token
from step import agreement
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from bora_sweep.errors import InputError

CPU = torch.device("cpu")


def small_opt():
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=48, hidden_size=32, word_embed_proj_dim=16, ffn_dim=64, num_hidden_layers=2, dropout=0.0,
            num_attention_heads=4, max_position_embeddings=64, do_layer_norm_before=False,
        )
    )  # fmt: skip


def small_llama():
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=48, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64,
        )
    )  # fmt: skip


@pytest.mark.parametrize("build", [small_opt, small_llama])
def test_ours_and_the_published_algorithm_have_one_loss_and_one_gradient(build):
    """With more tasks than rows: those without a row still feel the prior."""
    loss, gradients = agreement(Geometry(build, rank=3, num_tasks=5, rows=4, tokens=9), CPU, torch.float64)
    assert loss < 1e-12
    assert gradients < 1e-10


def test_batches_spread_their_rows_over_the_tasks():
    geometry = replace(GEOMETRIES["tiny"], num_tasks=5, rows=12, tokens=4)
    for tokens_BT, place_M, task_B in geometry.batches(2, CPU):
        assert place_M.tolist() == [place for place in range(tokens_BT.numel()) if place % 4]
        assert sorted(task_B.bincount().tolist()) == [2, 2, 2, 3, 3]


def test_operations_are_those_that_a_counter_sees():
    geometry = replace(GEOMETRIES["tiny"], rows=4, tokens=16, num_tasks=3)
    loop, (batch,) = Ours(geometry, CPU, torch.float32), geometry.batches(1, CPU)
    loop.adapted.longest_causal = 0  # the counter does not know a CPU's flash attention
    loop.adapted.base.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        loop.backward(batch)
    assert flops_per_token(loop, 16) * 64 == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_a_benchmark_says_what_it_measures_and_refuses_what_it_does_not_know(monkeypatch, capsys):
    def refuse(given):
        raise InputError(f"{given[0]}: no such key")

    def run(*arguments, **known):
        monkeypatch.setattr("sys.argv", ["step.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            start(refuse, "Tokens per second.", **known)
        return ended.value.code, "".join(capsys.readouterr())

    sizes = {"metavar": "SIZE", "choices": ["tiny", "crowd"]}
    code, said = run("--help", **sizes)
    assert code == 0
    assert "Tokens per second." in said
    code, said = run("huge", **sizes)
    assert code == 2
    assert "SIZE huge: choose from tiny, crowd" in said
    code, said = run("train.spead=1", metavar="key=value")
    assert (code, said) == (2, "error: train.spead=1: no such key\n")


def test_a_benchmark_is_given_what_was_asked_for(monkeypatch):
    given = []
    monkeypatch.setattr("sys.argv", ["coverage.py", "0", "1.5"])
    start(given.append, None, "SKEWNESS", kind=float)
    monkeypatch.setattr("sys.argv", ["step.py"])
    start(given.append, None, "SIZE", choices=["tiny"])
    start(lambda: given.append("called"), None)
    assert given == [[0.0, 1.5], [], "called"]
