"""The proximal step against its own definition, AdamW, and the known MAP of a convex problem."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bora_sweep.train.optim import clip_rows_, make_optimizer


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def banks(num_tasks: int = 3, size: int = 4) -> tuple[nn.Parameter, nn.Parameter]:
    return nn.Parameter(draw(size)), nn.Parameter(draw(num_tasks, size))


def test_without_a_prior_it_is_adamw():
    mean_P, task_KP = banks()
    twins = [nn.Parameter(bank.detach().clone()) for bank in (mean_P, task_KP)]
    proximal, adamw = make_optimizer(mean_P, task_KP, 0.1, 0.0), torch.optim.AdamW(twins, lr=0.1, weight_decay=0.0)
    for _ in range(5):
        for bank, twin in zip((mean_P, task_KP), twins, strict=True):
            bank.grad = draw(*bank.shape)
            twin.grad = bank.grad.clone()
        proximal.step()
        adamw.step()
    assert torch.equal(mean_P, twins[0])
    assert torch.equal(task_KP, twins[1])


@given(st.floats(1e-6, 1e9), st.floats(1e-5, 1.0))
@settings(deadline=None)
def test_a_step_minimises_prior_and_likelihood_in_adams_metric(precision, lr):
    mean_P, task_KP = banks()
    start_KP, start_P = task_KP.detach().clone(), mean_P.detach().clone()
    optimizer = make_optimizer(mean_P, task_KP, lr, precision)
    moment, square = 0.0, 0.0
    for step in range(1, 4):
        mean_P.grad, task_KP.grad = draw(4), draw(3, 4)
        moment = 0.9 * moment + 0.1 * task_KP.grad
        square = 0.999 * square + 0.001 * task_KP.grad**2
        optimizer.step()
        m, S = moment / (1 - 0.9**step), (square / (1 - 0.999**step)).sqrt() + 1e-8
        # Stationarity of <m, d> + S (d - start)^2 / (2 lr) + precision d^2 / 2.
        residual = m + S * (task_KP.detach() - start_KP) / lr + precision * task_KP.detach()
        scale = (m.abs() + S * start_KP.abs() / lr + precision * task_KP.detach().abs()).max()
        assert residual.abs().max() < 1e-9 * scale
        start_KP = task_KP.detach().clone()
    assert not torch.equal(mean_P, start_P)


@given(st.floats(1e-3, 1e9), st.floats(1e-5, 1.0))
@settings(deadline=None)
def test_it_stays_where_prior_and_likelihood_balance(precision, lr):
    mean_P, task_KP = banks()
    start_KP = task_KP.detach().clone()
    optimizer = make_optimizer(mean_P, task_KP, lr, precision)
    for _ in range(3):
        task_KP.grad = -precision * start_KP  # the likelihood's gradient at the MAP
        optimizer.step()
    torch.testing.assert_close(task_KP.detach(), start_KP, rtol=1e-9, atol=0)


@pytest.mark.parametrize("precision", [1.0, 1e3])
def test_its_fixed_point_is_the_map_of_a_quadratic(precision):
    """nll = sum_k c_k/2 ||mean + delta_k - y_k||^2 with prior precision/2 ||delta_k||^2: solved by a linear system."""
    y_KP, c_K = draw(3, 4), torch.rand(3, 1, dtype=torch.float64) + 0.5
    weight_K = c_K * precision / (c_K + precision)  # each task's say in Theta once its delta is optimal
    mean = (weight_K * y_KP).sum(0) / weight_K.sum(0)
    delta = c_K / (c_K + precision) * (y_KP - mean)

    mean_P, task_KP = banks()
    optimizer = make_optimizer(mean_P, task_KP, 0.1, precision)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.997)
    for _ in range(6000):
        optimizer.zero_grad()
        (0.5 * c_K * (mean_P + task_KP - y_KP) ** 2).sum().backward()
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(mean_P.detach(), mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(task_KP.detach(), delta, rtol=0, atol=1e-5)


@given(st.integers(1, 5), st.floats(1e-3, 1e3))
def test_clipping_scales_long_rows_to_the_bound_and_leaves_short_ones(num_rows, max_norm):
    gradient_KP = draw(num_rows, 6) * torch.logspace(-3, 3, num_rows, dtype=torch.float64)[:, None]
    gradient_KP[0] = 0
    before = gradient_KP.clone()
    clip_rows_(gradient_KP, max_norm)
    for after, row in zip(gradient_KP, before, strict=True):
        expected = row if row.norm() <= max_norm else row * (max_norm / row.norm())
        torch.testing.assert_close(after, expected)
