"""Merges against PEFT's `add_weighted_adapter` on the same adapters."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from tiny import make_base

from bora_sweep.config import MERGES, UNTRAINED, LoraConfig
from bora_sweep.model.layout import Layout, make_layout
from bora_sweep.model.merge_tasks import DENSITY, MERGE_OF, merge


@pytest.fixture(scope="module")
def layout() -> Layout:
    return make_layout(make_base(), LoraConfig(rank=2))


@pytest.mark.parametrize(("method", "theirs", "weight"), [("average", "linear", 1 / 9), ("ties", "ties", 1.0)])
def test_a_merge_equals_that_of_peft(layout, method, theirs, weight):
    theta_KP = torch.randn(3, layout.num_parameters, dtype=torch.float64)
    config = PeftConfig(r=2, lora_alpha=2, target_modules="all-linear", task_type="CAUSAL_LM")
    peft = get_peft_model(copy.deepcopy(make_base()), config, adapter_name="0").to(torch.float64)
    for index, theta_P in enumerate(theta_KP):
        if index:
            peft.add_adapter(str(index), config)
        for site, matrices in layout.split(theta_P).items():
            module: Any = peft.get_submodule(f"base_model.model.{site}")
            module.lora_A[str(index)].weight.data = matrices["A"].clone()
            module.lora_B[str(index)].weight.data = matrices["B"].clone()
    peft.add_weighted_adapter(["0", "1", "2"], [weight] * 3, "merged", combination_type=theirs, density=DENSITY)
    for site, merged in layout.split(merge(theta_KP, layout, method, seed=0)).items():
        module = peft.get_submodule(f"base_model.model.{site}")
        torch.testing.assert_close(merged["A"], module.lora_A["merged"].weight.data, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(merged["B"], module.lora_B["merged"].weight.data, rtol=1e-6, atol=1e-6)


def test_dare_keeps_the_mean_in_expectation_and_follows_its_seed(layout):
    theta_KP = torch.randn(3, layout.num_parameters, dtype=torch.float64)
    one, again, other = (merge(theta_KP, layout, "dare", seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    mean = torch.stack([merge(theta_KP, layout, "dare", seed) for seed in range(400)]).mean(0)
    # A kept value counts 1 / DENSITY times: of 400 draws the mean's standard error is at most |theta| / 20 / sqrt(3).
    assert (mean - theta_KP.mean(0)).abs().max() < 6 * theta_KP.abs().max() / 20 / 3**0.5


def test_every_merge_of_the_configuration_has_its_function_and_trains_nothing():
    assert MERGE_OF.keys() == set(MERGES) <= set(UNTRAINED)


@pytest.mark.parametrize("method", sorted(MERGE_OF))
def test_the_callers_random_state_is_not_changed(layout, method):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    merge(torch.randn(2, layout.num_parameters, generator=torch.Generator().manual_seed(1)), layout, method, 0)
    assert torch.equal(torch.rand(1), expected)
