"""`causal_attention` stands in for a base model's own attention only where it gives the same."""

import pytest
import torch
from families import FAMILIES, VOCABULARY, WITHOUT_FLOAT64, make_family

from bora_sweep.config import LoraConfig
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.attention import _Watch, has_causal_attention
from bora_sweep.model.layout import make_layout
from bora_sweep.model.trial_logits import made_up_tokens

WINDOW = 8
PLAIN = [
    "opt",
    "opt-350m",
    "gpt2",
    "llama",
    "qwen2",
    "qwen3",
    "mixtral",
    "deepseek_v3",
    "gpt_neox",
    "phi3",
    "qwen3_next",
]
WINDOWS = ["gemma3_text", "cohere2"]
LEFT_ALONE = ["bloom", "mpt", "falcon", "gemma2", "gpt_oss", "llama4_text", "mamba"]
"""ALiBi, caps, sinks, chunks, no attention at all."""


@pytest.mark.parametrize("family", PLAIN)
def test_plain_causal_attention_is_recognised(family):
    assert has_causal_attention(make_family(family), 24)


@pytest.mark.parametrize("family", LEFT_ALONE)
def test_other_attention_is_left_alone(family):
    assert not has_causal_attention(make_family(family), 24)


@pytest.mark.parametrize("family", WINDOWS)
@pytest.mark.parametrize("beyond", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sliding_window_is_left_alone_where_a_row_is_longer(family, beyond, dtype):
    """In bfloat16 by its mask alone: logits may differ by as much from rounding."""
    assert has_causal_attention(make_family(family, dtype=dtype), WINDOW + beyond) == (beyond == 0)


def test_a_window_that_the_configuration_hides_is_found_by_its_mask(monkeypatch):
    """Whether a layer has a window is not believed from names: the mask of a run decides."""
    base = make_family("gemma3_text")
    for layer in base.model.layers:
        monkeypatch.setattr(layer.self_attn, "sliding_window", None)
    assert not has_causal_attention(base, WINDOW + 1)


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in PLAIN else pytest.mark.families) for name in FAMILIES]
)
def test_loss_and_gradients_do_not_depend_on_the_attention(family):
    if family == "xlnet":
        pytest.skip("refused: it is not causal")
    dtype, rtol = (torch.float32, 1e-3) if family in WITHOUT_FLOAT64 else (torch.float64, 1e-9)
    found = []
    for longest in (None, 16):
        base = make_family(family, dtype=dtype)
        layout = make_layout(base, LoraConfig(rank=2))
        generator = torch.Generator().manual_seed(1)
        theta_BP = torch.randn(3, layout.num_parameters, dtype=dtype, generator=generator).mul_(0.1)
        theta_BP.requires_grad_()
        tokens_BT = torch.randint(3, VOCABULARY, (3, 16), generator=generator)
        adapted = AdaptedModel(base, layout, longest=longest)
        adapted(tokens_BT, theta_BP).logsumexp(-1).sum().backward()
        found.append((adapted.longest_causal, theta_BP.grad))
        adapted.remove_hooks()
    (own, expected), (_, gradient) = found
    assert not own
    torch.testing.assert_close(gradient, expected, rtol=rtol, atol=0.1 * rtol * expected.abs().max().item())


def test_rows_with_a_mask_have_the_models_own_attention():
    base = make_family("llama", dtype=torch.float64)
    adapted = AdaptedModel(base, make_layout(base, LoraConfig(rank=2)), longest=16)
    assert adapted.longest_causal
    tokens_BT = made_up_tokens(base, 2, 8)
    theta_1P = torch.zeros(1, adapted.layout.num_parameters, dtype=torch.float64)
    mask_BT = torch.ones_like(tokens_BT)
    mask_BT[0, :3] = 0  # padding on the left, which only a mask keeps out
    padded = adapted(tokens_BT, theta_1P, mask_BT)[0, 3:]
    assert not torch.allclose(padded, adapted(tokens_BT, theta_1P)[0, 3:], rtol=1e-3)


def test_the_model_has_its_own_attention_afterwards():
    base = make_family("llama")
    before = base.config._attn_implementation
    adapted = AdaptedModel(base, make_layout(base, LoraConfig(rank=2)), longest=16)
    adapted(made_up_tokens(base, 2, 8), torch.zeros(1, adapted.layout.num_parameters))
    assert base.config._attn_implementation == before


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_a_compiled_model_makes_no_mask(family):
    """In the graph that torch.compile is given, every attention is causal and takes no mask."""
    base = make_family(family)
    layout = make_layout(base, LoraConfig(rank=2))
    adapted = AdaptedModel(base, layout, longest=16)
    calls = []

    def record(graph, _):
        nodes = [node for node in graph.graph.nodes if "scaled_dot_product_attention" in str(node.target)]
        calls.extend(
            (node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask"), node.kwargs.get("is_causal"))
            for node in nodes
        )
        return graph.forward

    torch._dynamo.reset()
    adapted._run = torch.compile(adapted._run, backend=record)
    adapted(made_up_tokens(base, 2, 8), torch.zeros(2, layout.num_parameters))
    torch._dynamo.reset()
    assert len(calls) == base.config.num_hidden_layers
    assert all(mask is None and is_causal for mask, is_causal in calls)


@pytest.mark.parametrize("family", WINDOWS)
def test_a_row_that_is_longer_than_what_was_tried_has_the_models_own_attention(family):
    """Candidates and generated answers may be longer than any document."""
    base = make_family(family, dtype=torch.float64)
    layout = make_layout(base, LoraConfig(rank=2))
    tokens_BT, theta_1P = made_up_tokens(base, 2, 2 * WINDOW), torch.zeros(1, layout.num_parameters)
    adapted = AdaptedModel(base, layout, longest=WINDOW)
    assert adapted.longest_causal
    found = adapted(tokens_BT, theta_1P.double())
    adapted.remove_hooks()
    torch.testing.assert_close(found, base(input_ids=tokens_BT, use_cache=False).logits, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("window", [3, 6])
def test_a_call_is_plain_where_its_mask_hides_later_tokens_alone(window):
    watch, x_BNTE = _Watch(), torch.randn(1, 2, 6, 4)
    causal_TT = torch.ones(6, 6, dtype=torch.bool).tril()
    mask_TT = causal_TT & ~torch.ones(6, 6, dtype=torch.bool).tril(-window)
    watch(torch.nn.Module(), x_BNTE, x_BNTE, x_BNTE, mask_TT[None, None])
    assert watch.is_plain == [window == 6]
