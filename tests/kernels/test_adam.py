"""The fused step against its equations in float64, and against the optimiser's operations of torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bora_sweep.kernels import has_kernels_for
from bora_sweep.train.optim import ProximalAdam

LR, BETAS, EPS = 0.01, (0.9, 0.999), 1e-8


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stepped(bank, gradient, moment, square, step, lr, rate, precision) -> tuple[Tensor, Tensor, Tensor, int]:
    """What the kernel makes of them, and by how much the bank's version has grown."""
    from bora_sweep.kernels.adam import proximal_adam_

    assert has_kernels_for(bank)
    bank, moment, square = bank.clone(), moment.clone(), square.clone()
    before = bank._version
    proximal_adam_(
        bank, gradient, moment, square, step=step, lr=lr, rate=rate, betas=BETAS, eps=EPS, precision=precision
    )
    return bank, moment, square, bank._version - before


def exact(bank, gradient, moment, square, step, lr, rate, precision) -> list[tuple[Tensor, Tensor]]:
    """argmin_theta <m, theta> + 1/(2 lr) ||theta - bank||^2_S + p/2 ||theta||^2, and the moments.

    Each with the sum of the sizes of its terms, to which rounding is relative.
    """
    kept, added = BETAS[0] * moment, (1 - BETAS[0]) * gradient
    v = BETAS[1] * square + (1 - BETAS[1]) * gradient**2
    S = (v / (1 - BETAS[1] ** step)).sqrt() + EPS
    step_m = lr * rate * (kept + added) / (1 - BETAS[0] ** step)
    theta, size_of_theta = (S * bank - step_m), (S * bank.abs() + step_m.abs())
    divisor = S + lr * rate * precision
    return [(theta / divisor, size_of_theta / divisor), (kept + added, kept.abs() + added.abs()), (v, v)]


def numbers(*values: Tensor) -> list[float | Tensor]:
    """Those that are one number for all coordinates as one."""
    return [value if value.dim() else value.item() for value in values]


CASES = [
    (1, 0.0, False),
    (1, 1e12, True),
    (1000, 0.0, True),
    (1000, 1e-4, True),
    (1000, 1.0, False),
    (1000, 1e12, False),
]


@pytest.mark.parametrize(("step", "precision", "per_coordinate"), CASES)
@pytest.mark.parametrize("shape", [(1,), (1025,), (0, 7), (1, 1), (3, 1023), (5, 1024), (2, 2500)])
def test_a_step_is_that_of_its_equations(shape, step, precision, per_coordinate, run):
    size = shape[-1]
    strength = 10.0 ** torch.linspace(-12, 4, size, dtype=torch.float64)
    bank, gradient, before = (draw(*shape, seed=seed) for seed in range(3))
    gradient, before = gradient * strength, before * strength
    first = step == 1
    moment, square = (torch.zeros_like(before),) * 2 if first else (before, 2 * before**2)
    rate, precision = torch.ones(()), torch.tensor(precision)
    if per_coordinate:
        rate, precision = 16 * draw(size, seed=4).abs(), precision * draw(size, seed=5).abs()
    bank, gradient, moment, square, rate, precision = (
        x.float() for x in (bank, gradient, moment, square, rate, precision)
    )
    *found, versions = run(stepped, bank, gradient, moment, square, step, LR, *numbers(rate, precision))
    bank, gradient, moment, square, rate, precision = (
        x.double() for x in (bank, gradient, moment, square, rate, precision)
    )
    expected = exact(bank, gradient, moment, square, step, LR, rate, precision)
    for ours, (theirs, size_of_terms) in zip(found, expected, strict=True):
        assert ((ours - theirs).abs() <= 1e-6 * size_of_terms + 1e-37).all()
    assert versions > 0


def fitted(start_KP, start_P, gradients, precision, rate) -> tuple[Tensor, Tensor]:
    """Banks after steps of the optimiser."""
    task_KP, mean_P = nn.Parameter(start_KP.clone()), nn.Parameter(start_P.clone())
    groups = [{"params": [mean_P], "rate": rate}, {"params": [task_KP], "rate": rate, "prior_precision": precision}]
    optimizer = ProximalAdam(groups, lr=0.03)
    for gradient_KP in gradients:
        task_KP.grad, mean_P.grad = gradient_KP.clone(), gradient_KP.sum(0)
        optimizer.step()
    return task_KP.detach(), mean_P.detach()


@given(st.integers(1, 4), st.integers(1, 1500), st.floats(0, 1e6), st.booleans(), st.integers(0, 1000))
@settings(deadline=None, max_examples=25)
def test_the_optimiser_steps_as_by_operations_of_torch_in_float64(run, num_tasks, size, precision, scalar_rate, seed):
    rate = torch.ones((), dtype=torch.float64) if scalar_rate else draw(size, seed=seed).abs().float().double()
    start_KP, start_P, *gradients = (
        x.float().double() for x in (draw(num_tasks, size, seed=seed + 1), *draw(5, num_tasks, size, seed=seed + 2))
    )
    start_P = start_P[0]
    expected = fitted(start_KP, start_P, gradients, precision, rate)
    singles = [start_KP.float(), start_P.float(), [g.float() for g in gradients], precision, rate.float()]
    torch.testing.assert_close([bank.double() for bank in run(fitted, *singles)], list(expected), rtol=1e-5, atol=1e-5)


def test_a_bank_in_float64_has_no_kernel(run):
    assert run(has_kernels_for, torch.zeros(1))
    assert not run(has_kernels_for, torch.zeros(1, dtype=torch.float64))
