"""The forward pass with an adapter per row, and its gradients, equal a loop over PEFT models, one per task."""

import copy
import math

import numpy as np
import pytest
import torch
from grids import grid
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from tiny import FAMILIES, VOCABULARY, make_base, scored_until
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from bora_sweep.config import LoraConfig
from bora_sweep.errors import InputError
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.dora import adapted_norms
from bora_sweep.model.layout import Layout, make_layout
from bora_sweep.model.likelihood import nll_nats
from bora_sweep.model.lora import Site
from bora_sweep.model.mora import Mora
from bora_sweep.model.sites import find_sites

TARGETS = [None, "all-linear"]
VARIANTS = ["lora", "rslora", "lora_plus", "dora", "mora"]
IN_PEFT = ["lora", "rslora", "dora"]


def random_adapters(base, layout: Layout, num_tasks: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """theta_KP near the initial values, with noise on every part."""
    return layout.initial(base, 0, dtype) + 0.3 * torch.randn(num_tasks, layout.num_parameters, dtype=dtype)


def peft_weights(model, layout: Layout) -> list[torch.Tensor]:
    """The adapter's parameters in a PEFT model, in the order of theta_P."""
    modules = [model.get_submodule(f"base_model.model.{part.site.name}") for part in layout.parts]
    names = {"A": "lora_A", "B": "lora_B", "magnitude": "lora_magnitude_vector"}
    pairs = zip(modules, layout.parts, strict=True)
    return [module.get_submodule(f"{names[part.kind]}.default").weight for module, part in pairs]


def peft_model(base, layout: Layout, theta_P: torch.Tensor, config: LoraConfig):
    """A PEFT model of `base` that holds the adapter theta_P."""
    kind = {"use_rslora": config.variant == "rslora", "use_dora": config.variant == "dora"}
    targets = config.target_modules
    peft = PeftConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets, task_type="CAUSAL_LM", **kind)
    model = get_peft_model(copy.deepcopy(base), peft).to(base.dtype).eval()
    for weight, values in zip(peft_weights(model, layout), theta_P.split(layout.sizes), strict=True):
        weight.data.copy_(values.view_as(weight))
    return model


def mora_delta(M_SS: torch.Tensor, in_features: int, out_features: int) -> torch.Tensor:
    """What MoRA adds to a weight, entry by entry, from the paper's Eq. 9 and the authors' wrapping and cutting."""
    side = len(M_SS)
    blocks = -(-in_features // side)
    delta_OI = torch.zeros(out_features, in_features, dtype=M_SS.dtype)
    for o in range(out_features):
        block = (o // side) % blocks
        rotation_SS = torch.zeros(side, side, dtype=M_SS.dtype)
        for j in range(side // 2):
            angle, k = block / 10_000 ** (2 * j / side), j + side // 2
            rotation_SS[j, j] = rotation_SS[k, k] = math.cos(angle)
            rotation_SS[j, k], rotation_SS[k, j] = -math.sin(angle), math.sin(angle)
        row_S = M_SS[o % side] @ rotation_SS
        for s in range(side):
            delta_OI[o, (block * side + s) % in_features] += row_S[s]
    return delta_OI


def merged_mora(base, layout: Layout, theta_P: torch.Tensor):
    """A copy of `base` with MoRA's matrices added to its weights."""
    model = copy.deepcopy(base)
    for site, parts in zip(layout.sites, layout.split(theta_P).values(), strict=True):
        delta_OI = mora_delta(parts["M"], site.in_features, site.out_features)
        model.get_submodule(site.name).weight.data += delta_OI.T if site.transposed else delta_OI
    return model


@pytest.mark.parametrize(("family", "targets", "variant"), grid(FAMILIES, TARGETS, IN_PEFT))
def test_stacked_equals_a_loop_over_peft_models(family, targets, variant):
    base = make_base(family)
    config = LoraConfig(variant=variant, rank=3, alpha=5.0, target_modules=targets)
    layout = make_layout(base, config)
    theta_KP = random_adapters(base, layout, 4).requires_grad_()
    task_B = torch.tensor([2, 0, 3, 2, 0, 0])  # task 1 has no row
    tokens_BT = torch.randint(VOCABULARY, (len(task_B), 9))
    length_B = torch.randint(2, 10, (len(task_B),))

    loops = [peft_model(base, layout, theta_P.detach(), config) for theta_P in theta_KP]
    expected_B = torch.zeros(len(task_B), dtype=torch.float64)
    for row, task in enumerate(task_B):
        tokens = tokens_BT[row, : length_B[row]][None]
        loss = F.cross_entropy(loops[task](input_ids=tokens).logits[0, :-1], tokens[0, 1:], reduction="sum")
        loss.backward()
        expected_B[row] = loss.detach()

    adapted = AdaptedModel(base, layout)
    nll_B = nll_nats(adapted(tokens_BT, theta_KP[task_B]), tokens_BT, scored_until(length_B, tokens_BT.shape[1]))
    torch.testing.assert_close(nll_B, expected_B, rtol=1e-10, atol=1e-10)
    nll_B.sum().backward()
    for task in task_B.unique():
        gradient_P = torch.cat([weight.grad.flatten() for weight in peft_weights(loops[task], layout)])
        torch.testing.assert_close(theta_KP.grad[task], gradient_P, rtol=1e-9, atol=1e-10)
    assert not theta_KP.grad[1].any()


@pytest.mark.parametrize(("family", "rank"), grid(FAMILIES, [1, 2]))
def test_stacked_mora_equals_a_loop_over_merged_models(family, rank):
    base = make_base(family)
    layout = make_layout(base, LoraConfig(variant="mora", rank=rank, target_modules="all-linear"))
    theta_KP = random_adapters(base, layout, 3).requires_grad_()
    task_B = torch.tensor([2, 0, 2])
    tokens_BT = torch.randint(VOCABULARY, (len(task_B), 9))
    logits_BTV = AdaptedModel(base, layout)(tokens_BT, theta_KP[task_B])
    for row, task in enumerate(task_B):
        merged = merged_mora(base, layout, theta_KP[task].detach())
        torch.testing.assert_close(
            logits_BTV[row], merged(input_ids=tokens_BT[[row]]).logits[0], rtol=1e-10, atol=1e-10
        )
    logits_BTV.square().sum().backward()
    assert theta_KP.grad[[0, 2]].any(dim=1).all()
    assert not theta_KP.grad[1].any()


@pytest.mark.parametrize(("in_features", "out_features"), [(12, 12), (10, 14), (14, 10), (9, 40), (40, 9), (7, 7)])
def test_mora_and_its_gradients_equal_those_of_its_merged_weight(in_features, out_features):
    mora, site = Mora(rank=2), Site("site", in_features, out_features, transposed=False)
    M_BSS = torch.randn(3, *mora.shapes(site)["M"], dtype=torch.float64, requires_grad=True)
    x_BTI = torch.randn(3, 5, in_features, dtype=torch.float64, requires_grad=True)
    W_x = torch.randn(3, 5, out_features, dtype=torch.float64)
    stacked = mora.apply(W_x, x_BTI, {"M": M_BSS}, torch.nn.Identity())
    reference = W_x + torch.stack(
        [x @ mora_delta(M, in_features, out_features).T for x, M in zip(x_BTI, M_BSS, strict=True)]
    )
    torch.testing.assert_close(stacked, reference, rtol=1e-10, atol=1e-10)
    upstream = torch.randn_like(stacked)
    for ours, theirs in zip(
        torch.autograd.grad(stacked, [M_BSS, x_BTI], upstream),
        torch.autograd.grad(reference, [M_BSS, x_BTI], upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_mora_has_at_most_as_many_parameters_as_lora():
    base = make_base("opt-350m")
    mora, lora = (make_layout(base, LoraConfig(variant=variant, rank=4)) for variant in ("mora", "lora"))
    assert 0.8 * lora.num_parameters < mora.num_parameters <= lora.num_parameters


@pytest.mark.parametrize("transposed", [False, True])
def test_doras_norms_equal_those_of_the_adapted_weight(transposed):
    module = (Conv1D(5, 7) if transposed else torch.nn.Linear(7, 5)).double()
    A_BRI, B_BOR = torch.randn(4, 3, 7, dtype=torch.float64), torch.randn(4, 5, 3, dtype=torch.float64)
    weight_BOI = (module.weight.T if transposed else module.weight) + 1.7 * B_BOR @ A_BRI
    norms_BO = adapted_norms(module, A_BRI.requires_grad_(), B_BOR, 1.7)
    torch.testing.assert_close(norms_BO, weight_BOI.detach().norm(dim=-1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_bfloat16_base_with_float32_adapters_is_close_to_float32(variant):
    exact = make_base("opt-350m", dtype=torch.float32)
    layout = make_layout(exact, LoraConfig(variant=variant, rank=2))
    theta_BP = layout.initial(exact, 0) + 0.05 * torch.randn(3, layout.num_parameters)
    tokens_BT = torch.randint(VOCABULARY, (3, 9))
    expected = AdaptedModel(exact, layout)(tokens_BT, theta_BP)
    rounded = AdaptedModel(make_base("opt-350m", dtype=torch.bfloat16), layout)(tokens_BT, theta_BP)
    assert rounded.dtype == torch.bfloat16
    assert (rounded - expected).norm() < 0.05 * expected.norm()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = AdaptedModel(exact, layout)(tokens_BT, theta_BP)
    assert (mixed - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize(("family", "variant"), grid(FAMILIES, VARIANTS))
def test_one_adapter_for_all_rows_equals_the_same_adapter_in_each(family, variant):
    base = make_base(family)
    layout = make_layout(base, LoraConfig(variant=variant, rank=2, target_modules="all-linear"))
    theta_1P = random_adapters(base, layout, 1)
    adapted = AdaptedModel(base, layout)
    tokens_BT = torch.randint(VOCABULARY, (3, 7))
    torch.testing.assert_close(adapted(tokens_BT, theta_1P), adapted(tokens_BT, theta_1P.expand(3, -1)))


@pytest.mark.parametrize(("family", "variant"), grid(FAMILIES, VARIANTS))
def test_initial_adapters_leave_the_base_unchanged_and_removing_the_hooks_restores_it(family, variant):
    base = make_base(family)
    tokens_BT = torch.randint(VOCABULARY, (2, 8))
    before = base(input_ids=tokens_BT).logits
    layout = make_layout(base, LoraConfig(variant=variant, rank=2))
    adapted = AdaptedModel(base, layout)
    initial_1P = layout.initial(base, 0, torch.float64)[None]
    torch.testing.assert_close(adapted(tokens_BT, initial_1P), before, rtol=0, atol=1e-12)
    assert not torch.allclose(adapted(tokens_BT, random_adapters(base, layout, 1)), before)
    adapted.remove_hooks()
    assert torch.equal(base(input_ids=tokens_BT).logits, before)


@given(extra=st.integers(1, 12), seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_padding_never_counts(extra, seed):
    rng = np.random.default_rng(seed)
    base = make_base("opt-350m")
    layout = make_layout(base, LoraConfig(rank=2, target_modules="all-linear"))
    adapted = AdaptedModel(base, layout)
    theta_BP = torch.randn(4, layout.num_parameters, dtype=torch.float64)
    length_B = torch.from_numpy(rng.integers(2, 9, 4))
    tokens_BT = torch.from_numpy(rng.integers(0, VOCABULARY, (4, int(length_B.max()))))
    padding = torch.from_numpy(rng.integers(0, VOCABULARY, (4, extra)))
    long_BT = torch.cat([tokens_BT, padding], dim=1)
    scored_BT = scored_until(length_B, long_BT.shape[1])
    short = nll_nats(adapted(tokens_BT, theta_BP), tokens_BT, scored_BT[:, : tokens_BT.shape[1]])
    torch.testing.assert_close(nll_nats(adapted(long_BT, theta_BP), long_BT, scored_BT), short, rtol=1e-11, atol=1e-10)


def test_models_on_one_base_do_not_disturb_each_other():
    base = make_base("opt")
    layouts = [make_layout(base, LoraConfig(rank=2, target_modules=targets)) for targets in TARGETS]
    tokens_BT = torch.randint(VOCABULARY, (2, 8))
    thetas = [torch.randn(1, layout.num_parameters, dtype=torch.float64) for layout in layouts]
    alone = []
    for layout, theta_1P in zip(layouts, thetas, strict=True):
        adapted = AdaptedModel(base, layout)
        alone.append(adapted(tokens_BT, theta_1P))
        adapted.remove_hooks()
    both = [AdaptedModel(base, layout) for layout in layouts]
    for adapted, theta_1P, expected in zip(both, thetas, alone, strict=True):
        assert torch.equal(adapted(tokens_BT, theta_1P), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_split_views_the_parameters_without_a_copy_and_covers_them(variant):
    layout = make_layout(make_base("gpt2"), LoraConfig(variant=variant, rank=3, target_modules="all-linear"))
    theta_KP = torch.zeros(2, layout.num_parameters)
    for parts in layout.split(theta_KP).values():
        for part in parts.values():
            part += 1
    assert torch.equal(theta_KP, torch.ones_like(theta_KP))


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_groups_agree_with_split(variant):
    base = make_base("opt-350m")
    layout = make_layout(base, LoraConfig(variant=variant, rank=2, target_modules=["q_proj", "fc2", "project_in"]))
    theta_P = torch.zeros(layout.num_parameters, dtype=torch.int64)
    kinds, kind_P = layout.parameter_groups("matrix")
    for parts in layout.split(theta_P).values():
        for kind, part in parts.items():
            part.fill_(kinds.index(kind))
    assert torch.equal(kind_P, theta_P)
    layers, layer_P = layout.parameter_groups("layer")
    assert set(layers) == {"layer_0", "layer_1", "model.decoder.project_in"}
    for name, parts in layout.split(theta_P).items():
        layer = next((layer for layer in ("0", "1") if f".{layer}." in name), None)
        for part in parts.values():
            part.fill_(layers.index(name if layer is None else f"layer_{layer}"))
    assert torch.equal(layer_P, theta_P)


@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_initial_values_are_those_of_peft(variant):
    base, config = make_base("opt"), LoraConfig(variant=variant, rank=8, alpha=8)
    layout = make_layout(base, config)
    theta_P = layout.initial(base, seed=3, dtype=torch.float64)
    assert torch.equal(theta_P, layout.initial(base, seed=3, dtype=torch.float64))
    assert not torch.equal(theta_P, layout.initial(base, seed=4, dtype=torch.float64))
    kind = {"use_dora": variant == "dora", "task_type": "CAUSAL_LM"}
    peft = get_peft_model(copy.deepcopy(base), PeftConfig(r=8, target_modules="all-linear", **kind))
    theirs = peft_weights(peft, layout)
    for part, ours, weight in zip(layout.parts, theta_P.split(layout.sizes), theirs, strict=True):
        if part.kind == "A":
            bound = part.site.in_features**-0.5  # kaiming_uniform_ with a = sqrt(5)
            assert 0.9 * bound < min(ours.abs().max(), weight.abs().max())
            assert max(ours.abs().max(), weight.abs().max()) <= bound
        else:
            torch.testing.assert_close(ours, weight.detach().flatten().double(), rtol=0, atol=1e-12)


def test_each_variant_has_its_scale():
    scale_of = {variant: LoraConfig(variant=variant, rank=4, alpha=6.0).scale for variant in VARIANTS[:-1]}
    assert scale_of == {"lora": 1.5, "rslora": 3.0, "lora_plus": 1.5, "dora": 1.5}
    assert LoraConfig(variant="mora", rank=4).scale == 1.0


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"variant": "mora", "alpha": 3.0}, "lora.alpha=3.0"),
        ({"variant": "lora_plus", "learning_rate_ratio": 0.0}, "learning_rate_ratio=0.0"),
        ({"learning_rate_ratio": math.inf}, "learning_rate_ratio=inf"),
    ],
)
def test_settings_that_a_variant_does_not_support_are_refused(values, says):
    with pytest.raises(InputError, match=says):
        LoraConfig(**values)


def test_modules_that_a_variant_cannot_adapt_are_refused_by_name():
    base = make_base("opt")
    with pytest.raises(InputError, match=r"square matrix of 40 for model\.decoder\.layers\.0\.self_attn\.k_proj"):
        make_layout(base, LoraConfig(variant="mora", rank=50))
    with torch.device("meta"):
        empty = FAMILIES["opt"]()
    make_layout(empty, LoraConfig(variant="dora"))
    base.get_submodule("model.decoder.layers.1.self_attn.v_proj").weight.data[3] = 0
    with pytest.raises(InputError, match=r"layers\.1\.self_attn\.v_proj has outputs whose weights are all 0"):
        make_layout(base, LoraConfig(variant="dora")).initial(base, 0)


@pytest.mark.parametrize(
    ("targets", "says"),
    [(["q_proj", "nothing"], "nothing"), (["final_layer_norm"], "LayerNorm"), ("no.*match", "no.*match")],
)
def test_wrong_targets_are_refused_by_name(targets, says):
    with pytest.raises(InputError) as caught:
        find_sites(make_base("opt"), LoraConfig(target_modules=targets))
    assert says in str(caught.value)


def test_all_linear_leaves_the_head_alone():
    names = {site.name for site in find_sites(make_base("llama"), LoraConfig(target_modules="all-linear"))}
    assert "lm_head" not in names
    assert len(names) == 2 * 7
