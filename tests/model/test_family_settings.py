"""Each family in the ways that a fit may run it: in bfloat16, compiled, with chosen attention and checkpoints together.

`test_attention`, `test_checkpointing` and `test_quantization` hold each setting's own law.
"""

import pytest
import torch
from families import FAMILIES, VOCABULARY, WITHOUT_FLOAT64, make_family

from bora_sweep.config import LoraConfig
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.layout import make_layout

QUICK = ["opt", "gpt2", "llama", "qwen2"]
ROUTED = {
    "deepseek_v3", "qwen3_next", "qwen3_moe", "qwen2_moe", "mixtral", "llama4_text", "gpt_oss", "granitemoe", "olmoe",
    "jamba", "granitemoehybrid", "phimoe",
}  # fmt: skip
"""Rounding sends a token to another expert, and its gradient with it."""
EAGER_ONLY = {"rwkv", "mamba", "falcon_mamba", "mamba2", "jamba", "bamba", "granitemoehybrid", "recurrent_gemma"}
"""Loops over positions, whose graphs take minutes."""


def families(quick: list[str], without: set[str] = frozenset()):
    names = [name for name in FAMILIES if name not in without | {"xlnet"}]
    return [pytest.param(name, marks=() if name in quick else pytest.mark.families) for name in names]


def gradient_of(family: str, dtype: torch.dtype, *, wrap=None, **settings) -> torch.Tensor:
    """The gradient of a loss of three rows, each with an adapter of its own."""
    base = make_family(family, dtype=dtype)
    layout = make_layout(base, LoraConfig(rank=2))
    generator = torch.Generator().manual_seed(1)
    high = torch.promote_types(dtype, torch.float32)
    theta_BP = layout.initial(base, 0, high) + 0.1 * torch.randn(
        3, layout.num_parameters, dtype=high, generator=generator
    )
    theta_BP.requires_grad_()
    tokens_BT = torch.randint(3, VOCABULARY, (3, 12), generator=generator)
    weights_BT = torch.linspace(-1, 1, 36, dtype=high).view(3, 12)
    adapted = AdaptedModel(base, layout, **settings)
    if wrap is not None:
        adapted._run = wrap(adapted._run)
    (adapted(tokens_BT, theta_BP).to(high).logsumexp(-1) * weights_BT).sum().backward()
    adapted.remove_hooks()
    assert theta_BP.grad is not None
    return theta_BP.grad


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("family", families(QUICK, ROUTED))
def test_gradients_in_bfloat16_are_those_of_float32_up_to_its_rounding(family):
    """bfloat16 has 8 bits, and what the rounding of all layers adds to a gradient stays below a tenth."""
    found = gradient_of(family, torch.bfloat16, longest=12)
    assert apart(found, gradient_of(family, torch.float32)) < 0.1


@pytest.mark.parametrize("family", families(QUICK))
def test_attention_and_checkpoints_go_together_in_bfloat16(family):
    settings = {"longest": 12, "checkpointed": True}
    found, plain = gradient_of(family, torch.bfloat16, **settings), gradient_of(family, torch.bfloat16, longest=12)
    assert apart(found, plain) < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("family", families(["llama"], EAGER_ONLY))
def test_a_compiled_family_has_the_same_gradients(family):
    dtype = torch.float32 if family in WITHOUT_FLOAT64 else torch.float64
    torch._dynamo.reset()
    found = gradient_of(
        family, dtype, wrap=lambda run: torch.compile(run, backend="aot_eager"), longest=12, checkpointed=True
    )
    torch._dynamo.reset()
    assert apart(found, gradient_of(family, dtype)) < 1e-4
