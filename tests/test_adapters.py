"""The stacked forward and its gradients are those of a loop over PEFT models, one per task."""

import copy

import numpy as np
import pytest
import torch
from conftest import FAMILIES, VOCABULARY, make_base
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from torch.nn import functional as F

from bora_sweep.config import LoraConfig
from bora_sweep.errors import InputError
from bora_sweep.model.adapters import AdaptedModel, Layout, find_sites
from bora_sweep.model.objective import nll_nats

TARGETS = [None, "all-linear"]


def peft_model(base, layout: Layout, theta_P: torch.Tensor, alpha: float, targets):
    """A PEFT LoRA model of `base` that holds the adapter theta_P."""
    config = PeftConfig(r=layout.rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(copy.deepcopy(base), config).to(base.dtype).eval()
    for name, (A_RI, B_OR) in layout.split(theta_P).items():
        module = model.get_submodule(f"base_model.model.{name}")
        module.lora_A["default"].weight.data.copy_(A_RI)
        module.lora_B["default"].weight.data.copy_(B_OR)
    return model


def peft_gradient(model, layout: Layout) -> torch.Tensor:
    parts = []
    for site in layout.sites:
        module = model.get_submodule(f"base_model.model.{site.name}")
        parts += [module.lora_A["default"].weight.grad.flatten(), module.lora_B["default"].weight.grad.flatten()]
    return torch.cat(parts)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_stacked_equals_a_loop_over_peft_models(family, targets):
    rank, alpha, num_tasks = 3, 5.0, 4
    base = make_base(family)
    config = LoraConfig(rank=rank, alpha=alpha, target_modules=targets)
    layout = Layout(find_sites(base, config), rank)
    theta_KP = torch.randn(num_tasks, layout.num_parameters, dtype=torch.float64).mul_(0.3).requires_grad_()
    task_B = torch.tensor([2, 0, 3, 2, 0, 0])  # task 1 has no row
    tokens_BT = torch.randint(VOCABULARY, (len(task_B), 9))
    length_B = torch.randint(2, 10, (len(task_B),))

    loops = [peft_model(base, layout, theta_P.detach(), alpha, targets) for theta_P in theta_KP]
    expected_B = torch.zeros(len(task_B), dtype=torch.float64)
    for row, task in enumerate(task_B):
        tokens = tokens_BT[row, : length_B[row]][None]
        loss = F.cross_entropy(loops[task](input_ids=tokens).logits[0, :-1], tokens[0, 1:], reduction="sum")
        loss.backward()
        expected_B[row] = loss.detach()

    adapted = AdaptedModel(base, layout, config.scale)
    nll_B = nll_nats(adapted(tokens_BT, theta_KP[task_B]), tokens_BT, length_B)
    torch.testing.assert_close(nll_B, expected_B, rtol=1e-10, atol=1e-10)
    nll_B.sum().backward()
    for task in task_B.unique():
        torch.testing.assert_close(theta_KP.grad[task], peft_gradient(loops[task], layout), rtol=1e-9, atol=1e-10)
    assert not theta_KP.grad[1].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_one_adapter_for_all_rows_equals_the_same_adapter_in_each(family):
    base = make_base(family)
    layout = Layout(find_sites(base, LoraConfig(target_modules="all-linear")), 2)
    theta_P = torch.randn(layout.num_parameters, dtype=torch.float64)
    adapted = AdaptedModel(base, layout, 0.5)
    tokens_BT = torch.randint(VOCABULARY, (3, 7))
    torch.testing.assert_close(adapted(tokens_BT, theta_P[None]), adapted(tokens_BT, theta_P.expand(3, -1)))


@pytest.mark.parametrize("family", FAMILIES)
def test_at_the_start_the_base_is_unchanged_and_detached_it_is_itself_again(family):
    base = make_base(family)
    tokens_BT = torch.randint(VOCABULARY, (2, 8))
    before = base(input_ids=tokens_BT).logits
    layout = Layout(find_sites(base, LoraConfig()), 2)
    adapted = AdaptedModel(base, layout, 1.0)
    torch.testing.assert_close(adapted(tokens_BT, layout.initial(0, torch.float64)[None]), before, rtol=0, atol=1e-12)
    theta_P = torch.randn(layout.num_parameters, dtype=torch.float64)
    assert not torch.allclose(adapted(tokens_BT, theta_P[None]), before)
    adapted.detach()
    assert torch.equal(base(input_ids=tokens_BT).logits, before)


@given(extra=st.integers(1, 12), seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_padding_never_counts(extra, seed):
    rng = np.random.default_rng(seed)
    base = make_base("opt-350m")
    layout = Layout(find_sites(base, LoraConfig(target_modules="all-linear")), 2)
    adapted = AdaptedModel(base, layout, 1.0)
    theta_BP = torch.randn(4, layout.num_parameters, dtype=torch.float64)
    length_B = torch.from_numpy(rng.integers(2, 9, 4))
    tokens_BT = torch.from_numpy(rng.integers(0, VOCABULARY, (4, int(length_B.max()))))
    padding = torch.from_numpy(rng.integers(0, VOCABULARY, (4, extra)))
    short = nll_nats(adapted(tokens_BT, theta_BP), tokens_BT, length_B)
    long_BT = torch.cat([tokens_BT, padding], dim=1)
    torch.testing.assert_close(nll_nats(adapted(long_BT, theta_BP), long_BT, length_B), short, rtol=0, atol=1e-10)


def test_models_on_one_base_do_not_disturb_each_other():
    base = make_base("opt")
    layouts = [Layout(find_sites(base, LoraConfig(target_modules=targets)), 2) for targets in TARGETS]
    tokens_BT = torch.randint(VOCABULARY, (2, 8))
    thetas = [torch.randn(1, layout.num_parameters, dtype=torch.float64) for layout in layouts]
    alone = []
    for layout, theta_1P in zip(layouts, thetas, strict=True):
        adapted = AdaptedModel(base, layout, 1.0)
        alone.append(adapted(tokens_BT, theta_1P))
        adapted.detach()
    both = [AdaptedModel(base, layout, 1.0) for layout in layouts]
    for adapted, theta_1P, expected in zip(both, thetas, alone, strict=True):
        assert torch.equal(adapted(tokens_BT, theta_1P), expected)


def test_opt_350m_has_the_papers_number_of_parameters():
    from transformers import OPTConfig, OPTForCausalLM

    with torch.device("meta"):
        base = OPTForCausalLM(
            OPTConfig(
                hidden_size=1024, word_embed_proj_dim=512, ffn_dim=4096, num_hidden_layers=24, num_attention_heads=16,
                do_layer_norm_before=False,
            )
        )  # fmt: skip
    assert Layout(find_sites(base, LoraConfig(rank=16)), 16).num_parameters == 1_572_864


def test_split_views_the_parameters_without_a_copy_and_covers_them():
    layout = Layout(find_sites(make_base("gpt2"), LoraConfig(target_modules="all-linear")), 3)
    theta_KP = torch.zeros(2, layout.num_parameters)
    for A_KRI, B_KOR in layout.split(theta_KP).values():
        A_KRI += 1
        B_KOR += 1
    assert torch.equal(theta_KP, torch.ones_like(theta_KP))


def test_initial_values_are_peft_s():
    layout = Layout(find_sites(make_base("opt"), LoraConfig(rank=8)), 8)
    theta_P = layout.initial(seed=3)
    assert torch.equal(theta_P, layout.initial(seed=3))
    assert not torch.equal(theta_P, layout.initial(seed=4))
    for A_RI, B_OR in layout.split(theta_P).values():
        assert not B_OR.any()
        bound = A_RI.shape[-1] ** -0.5  # kaiming_uniform_ with a = sqrt(5), as PEFT has it
        assert 0.9 * bound < A_RI.abs().max() <= bound


@pytest.mark.parametrize(
    ("targets", "says"),
    [(["q_proj", "nothing"], "nothing"), (["final_layer_norm"], "LayerNorm"), ("no.*match", "no.*match")],
)
def test_targets_that_do_not_fit_are_refused_by_name(targets, says):
    with pytest.raises(InputError) as caught:
        find_sites(make_base("opt"), LoraConfig(target_modules=targets))
    assert says in str(caught.value)


def test_all_linear_leaves_the_head_alone():
    names = {site.name for site in find_sites(make_base("llama"), LoraConfig(target_modules="all-linear"))}
    assert "lm_head" not in names
    assert len(names) == 2 * 7
