"""The log prior against torch.distributions, and the two coordinate systems against each other."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal

from bora_sweep.model import hierarchy as hierarchy_module
from bora_sweep.model.hierarchy import Hierarchy
from bora_sweep.model.prior import distance_to_global, log_prior

tasks, sizes, taus = st.integers(1, 5), st.integers(1, 7), st.floats(1e-3, 1e6)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@given(tasks, sizes, taus)
def test_log_prior_is_the_normal_density_without_its_constant(num_tasks, size, tau):
    theta_KP, mean_P = draw(num_tasks, size), draw(size)
    density = Normal(mean_P, tau**-0.5).log_prob(theta_KP).sum()
    constant = 0.5 * num_tasks * size * math.log(tau / (2 * math.pi))
    torch.testing.assert_close(log_prior(theta_KP, mean_P, tau), density - constant, rtol=1e-8, atol=1e-8)


@given(tasks, sizes, taus)
def test_its_gradient_pulls_each_task_to_theta_and_theta_to_the_tasks(num_tasks, size, tau):
    theta_KP, mean_P = draw(num_tasks, size).requires_grad_(), draw(size).requires_grad_()
    log_prior(theta_KP, mean_P, tau).backward()
    pull_KP = -tau * (theta_KP - mean_P).detach()
    torch.testing.assert_close(theta_KP.grad, pull_KP)
    torch.testing.assert_close(mean_P.grad, -pull_KP.sum(0))


def test_distance_is_the_root_of_the_squared_sum():
    theta_KP, mean_P = draw(3, 5), draw(5)
    torch.testing.assert_close(
        -0.5 * distance_to_global(theta_KP, mean_P).square().sum(), log_prior(theta_KP, mean_P, 1)
    )


@pytest.mark.parametrize("tau", [0.0, 0.5, 1e4])
def test_both_coordinates_represent_the_same_model(tau):
    initial_P, delta_KP = draw(6), draw(3, 6)
    noncentered, centered = (
        Hierarchy(initial_P, num_tasks=3, tau=tau, parametrization=kind) for kind in ("noncentered", "centered")
    )
    with torch.no_grad():
        noncentered.task_KP.add_(delta_KP)
        centered.task_KP.add_(delta_KP)
    task_B = torch.tensor([1, 1, 2, 0])
    torch.testing.assert_close(noncentered.theta_BP(task_B), centered.theta_BP(task_B))
    torch.testing.assert_close(noncentered.theta_KP(), centered.theta_KP())
    torch.testing.assert_close(noncentered.log_prior(), centered.log_prior())


@pytest.mark.parametrize("kind", ["noncentered", "centered"])
def test_limits_are_exact(kind):
    initial_P = draw(6)
    independent, shared = (Hierarchy(initial_P, num_tasks=3, tau=tau, parametrization=kind) for tau in (0.0, math.inf))
    assert not independent.mean_P.requires_grad
    assert [name for name, _ in shared.named_parameters()] == ["mean_P"]
    assert shared.theta_BP(torch.tensor([0, 2])).shape == (1, 6)
    assert independent.log_prior() == shared.log_prior() == 0


@pytest.mark.parametrize("kind", ["noncentered", "centered"])
@pytest.mark.parametrize("has_tau_P", [False, True], ids=["one tau", "a tau for each coordinate"])
def test_the_closed_form_gradient_equals_that_of_the_density(kind, has_tau_P):
    tau_P = torch.rand(6, dtype=torch.float64) + 0.1 if has_tau_P else None
    hierarchy, twin = (
        Hierarchy(torch.zeros(6, dtype=torch.float64), num_tasks=3, tau=2.5, parametrization=kind, precision=tau_P)
        for _ in range(2)
    )
    mean_P, theta_KP, task_B = draw(6), draw(3, 6), torch.tensor([0, 1, 2, 2])
    for model in (hierarchy, twin):
        model.set_adapters_(mean_P, theta_KP)
        model.theta_BP(task_B).sin().sum().backward()
    hierarchy.add_prior_gradient_(num_tokens=7)
    deviations = twin.task_KP - twin.mean_P if kind == "centered" else twin.task_KP
    (-log_prior(deviations, 0.0, 2.5 if tau_P is None else tau_P) / 7).backward()
    torch.testing.assert_close(hierarchy.mean_P.grad, twin.mean_P.grad)
    torch.testing.assert_close(hierarchy.task_KP.grad, twin.task_KP.grad)


@pytest.mark.parametrize("kind", ["noncentered", "centered"])
def test_recentering_moves_only_theta_to_the_maximum_of_the_prior(kind):
    hierarchy = Hierarchy(draw(6), num_tasks=3, tau=2.0, parametrization=kind)
    hierarchy.set_adapters_(draw(6), draw(3, 6))
    before = hierarchy.theta_KP()
    hierarchy.recenter_()
    torch.testing.assert_close(hierarchy.theta_KP(), before)
    torch.testing.assert_close(hierarchy.mean_P.detach(), before.mean(0))
    assert hierarchy.log_prior() >= log_prior(before, before.mean(0) + 0.01 * draw(6), 2.0)


def test_a_row_has_a_gradient_only_in_its_task_and_theta():
    hierarchy = Hierarchy(draw(6), num_tasks=4, tau=2.0, parametrization="noncentered")
    hierarchy.theta_BP(torch.tensor([2, 2, 0])).sum().backward()
    torch.testing.assert_close(hierarchy.task_KP.grad.sum(1) / 6, torch.tensor([1.0, 0, 2, 0], dtype=torch.float64))
    torch.testing.assert_close(hierarchy.mean_P.grad, torch.full((6,), 3.0, dtype=torch.float64))


@pytest.mark.parametrize("parametrization", ["noncentered", "centered"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_passes_add_their_gradients_as_one_pass_of_all_rows(parametrization, dtype, monkeypatch):
    """Also in columns that are added one block after another, and whatever the number of rows beside that of tasks."""
    monkeypatch.setattr(hierarchy_module, "COLUMNS", 2)
    rows, weight_BP = torch.randint(4, (11,)), torch.randint(-8, 8, (11, 5)).to(dtype)
    found = []
    for cuts in ([11], [2, 7, 2]):
        model = Hierarchy(
            torch.zeros(5, dtype=torch.promote_types(dtype, torch.float32)), num_tasks=4, tau=10.0,
            parametrization=parametrization,
        )  # fmt: skip
        for task_B, weight in zip(rows.split(cuts), weight_BP.split(cuts), strict=True):
            (model.theta_BP(task_B, dtype) * weight).sum().backward()
        found.append([bank.grad for bank in model.parameters() if bank.requires_grad])
    expected_KP = torch.zeros_like(found[0][-1])
    for task, weight_P in zip(rows.tolist(), weight_BP, strict=True):
        expected_KP[task] += weight_P.to(expected_KP.dtype)
    for gradients in found:
        assert torch.equal(gradients[-1], expected_KP)
        if parametrization == "noncentered":
            assert torch.equal(gradients[0], expected_KP.sum(0))
