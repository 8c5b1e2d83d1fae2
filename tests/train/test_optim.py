"""The proximal step against its own definition, AdamW, and the known MAP of a convex problem."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bora_sweep.model.hierarchy import Hierarchy
from bora_sweep.model.prior import log_prior
from bora_sweep.train import optim
from bora_sweep.train.optim import ProximalAdam, clip_rows_, make_optimizer, map_step


@pytest.fixture(autouse=True)
def _seeded():
    """The same draws for a test whichever ran before it."""
    torch.manual_seed(0)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def banks(num_tasks: int = 3, size: int = 4) -> tuple[nn.Parameter, nn.Parameter]:
    return nn.Parameter(draw(size)), nn.Parameter(draw(num_tasks, size))


def proximal_adam(mean_P: nn.Parameter, task_KP: nn.Parameter, lr: float, precision: float) -> ProximalAdam:
    return ProximalAdam([{"params": [mean_P]}, {"params": [task_KP], "prior_precision": precision}], lr=lr)


def test_without_a_prior_it_is_adamw():
    mean_P, task_KP = banks()
    twins = [nn.Parameter(bank.detach().clone()) for bank in (mean_P, task_KP)]
    proximal, adamw = proximal_adam(mean_P, task_KP, 0.1, 0.0), torch.optim.AdamW(twins, lr=0.1, weight_decay=0.0)
    for _ in range(5):
        for bank, twin in zip((mean_P, task_KP), twins, strict=True):
            bank.grad = draw(*bank.shape)
            twin.grad = bank.grad.clone()
        proximal.step()
        adamw.step()
    torch.testing.assert_close(mean_P, twins[0], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(task_KP, twins[1], rtol=1e-13, atol=1e-13)


@given(st.floats(1e-6, 1e9), st.floats(1e-5, 1.0))
@settings(deadline=None)
def test_a_step_minimises_prior_and_likelihood_in_adams_metric(precision, lr):
    mean_P, task_KP = banks()
    start_KP, start_P = task_KP.detach().clone(), mean_P.detach().clone()
    optimizer = proximal_adam(mean_P, task_KP, lr, precision)
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
    optimizer = proximal_adam(mean_P, task_KP, lr, precision)
    for _ in range(3):
        task_KP.grad = -precision * start_KP  # the likelihood's gradient at the MAP
        optimizer.step()
    torch.testing.assert_close(task_KP.detach(), start_KP, rtol=1e-9, atol=0)


@pytest.mark.parametrize("shape", [(4,), (5, 1), (5, 4)], ids=["by coordinate", "by row", "by number"])
def test_a_bank_taken_in_blocks_steps_as_a_whole_one(monkeypatch, shape):
    start_KP, rate = draw(5, 4), draw(*shape).exp()
    gradients, ended = [draw(5, 4) for _ in range(3)], []
    for block in (8, 1000):
        monkeypatch.setitem(optim.BLOCK, "cpu", block)
        bank = nn.Parameter(start_KP.clone())
        optimizer = ProximalAdam([{"params": [bank], "prior_precision": 0.3 * rate, "rate": rate}], lr=0.1)
        for gradient in gradients:
            bank.grad = gradient.clone()
            optimizer.step()
        ended.append(bank.detach())
    torch.testing.assert_close(*ended, rtol=1e-14, atol=0)
    assert not torch.equal(ended[0], start_KP)


def test_moments_decay_at_a_rows_pace_as_in_as_many_steps_without_a_gradient():
    start_KP, gradient_KP, optimizers = draw(2, 4), draw(2, 4), []
    for paces in ([torch.tensor([[3.0], [1.0]], dtype=torch.float64)], [1.0, 1.0, 1.0]):
        bank = nn.Parameter(start_KP.clone())
        optimizer = ProximalAdam([{"params": [bank]}], lr=0.1)
        optimizer.state[bank]["step"] = torch.zeros(2, 1, dtype=torch.float64)
        for gradient, pace in [(gradient_KP, 1.0), *((0 * gradient_KP, pace) for pace in paces)]:
            optimizer.param_groups[0]["pace"] = pace * torch.ones(2, 1, dtype=torch.float64)
            bank.grad = gradient.clone()
            optimizer.step()
        optimizers.append(optimizer.state[bank])
    for name in ("exp_avg", "exp_avg_sq", "step"):
        torch.testing.assert_close(optimizers[0][name][0], optimizers[1][name][0], rtol=1e-12, atol=0)


class HierarchicalRegression:
    """y_d = X_d theta_d + noise, nll_d = 1/2 ||y_d - X_d theta_d||^2, with the prior of Eq. 5: a linear system."""

    def __init__(self, num_tasks: int = 4, num_observations: int = 20, size: int = 3) -> None:
        self.X_KNP = draw(num_tasks, num_observations, size)
        theta_KP = draw(size) + 0.7 * draw(num_tasks, size)
        self.y_KN = (self.X_KNP @ theta_KP[..., None])[..., 0] + 0.3 * draw(num_tasks, num_observations)
        self.num_tasks, self.size, self.num_observations = num_tasks, size, num_tasks * num_observations

    def nll(self, theta_KP: torch.Tensor) -> torch.Tensor:
        return 0.5 * ((self.X_KNP @ theta_KP[..., None])[..., 0] - self.y_KN).square().sum()

    def map(self, tau: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Theta and theta_1..K: theta_d = Theta + (H_d + tau)^-1 (b_d - H_d Theta), whose deviations sum to 0."""
        H_KPP = self.X_KNP.mT @ self.X_KNP
        b_KP = (self.X_KNP.mT @ self.y_KN[..., None])[..., 0]
        gain_KPP = torch.linalg.inv(H_KPP + tau * torch.eye(self.size, dtype=torch.float64))
        mean_P = torch.linalg.solve((gain_KPP @ H_KPP).sum(0), (gain_KPP @ b_KP[..., None]).sum(0)[:, 0])
        return mean_P, mean_P + (gain_KPP @ (b_KP - H_KPP @ mean_P)[..., None])[..., 0]

    def solve(self, tau, solver, parametrization, update, lr, steps, start=None) -> Hierarchy:
        """Full-batch steps, the learning rate falling to 0 as a cosine does."""
        zero_P = torch.zeros(self.size, dtype=torch.float64)
        hierarchy = Hierarchy(
            zero_P, num_tasks=self.num_tasks, tau=tau, parametrization=parametrization, global_update=update
        )
        if start is not None:
            hierarchy.set_adapters_(*start)
        optimizer = make_optimizer(hierarchy, lr, solver, self.num_observations)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            (self.nll(hierarchy.theta_BP(torch.arange(self.num_tasks))) / self.num_observations).backward()
            map_step(hierarchy, optimizer, solver, self.num_observations, global_update=update)
            schedule.step()
        return hierarchy

    def distance(self, hierarchy: Hierarchy, tau: float) -> float:
        """The largest error of a parameter."""
        mean_P, theta_KP = self.map(tau)
        return max((hierarchy.mean_P - mean_P).abs().max().item(), (hierarchy.theta_KP() - theta_KP).abs().max().item())


@pytest.mark.parametrize("tau", [0.1, 10.0, 1e4])
@pytest.mark.parametrize("solver", ["proximal", "adamw"])
def test_where_theta_is_held_each_task_reaches_its_map_under_it(solver, tau):
    """Each task is a fit of its own, whose prior is divided by its own tokens."""
    problem, mean_P = HierarchicalRegression(), draw(3)
    hierarchy = Hierarchy(mean_P, num_tasks=4, tau=tau, parametrization="noncentered", holds_mean=True)
    tokens_K1 = torch.tensor([[5.0], [10.0], [20.0], [40.0]], dtype=torch.float64)
    optimizer = make_optimizer(hierarchy, 0.1, solver, tokens_K1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        problem.nll(hierarchy.theta_BP(torch.arange(4))).backward()
        hierarchy.task_KP.grad /= tokens_K1
        map_step(hierarchy, optimizer, solver, tokens_K1)
        schedule.step()
    H_KPP = problem.X_KNP.mT @ problem.X_KNP
    pull_KP = (problem.X_KNP.mT @ problem.y_KN[..., None])[..., 0] + tau * mean_P
    exact_KP = torch.linalg.solve(H_KPP + tau * torch.eye(3, dtype=torch.float64), pull_KP)
    torch.testing.assert_close(hierarchy.theta_KP(), exact_KP, rtol=0, atol=1e-4)
    assert torch.equal(hierarchy.mean_P.detach(), mean_P)


SOLVERS = [
    pytest.param(solver, parametrization, update, id=f"{solver}-{parametrization}-{update}")
    for solver, parametrization in (("proximal", "noncentered"), ("adamw", "noncentered"), ("adamw", "centered"))
    for update in ("gradient", "mean")
]
TAUS = [1e-3, 1e3, 1e9]  # a prior that hardly binds, one as strong as the likelihood, one that ties all tasks
LR = 0.03  # one for every tau
STEPS = 500


def test_the_reference_is_the_map():
    problem, tau = HierarchicalRegression(), 2.5
    mean_P, theta_KP = (bank.requires_grad_() for bank in problem.map(tau))
    (problem.nll(theta_KP) - log_prior(theta_KP, mean_P, tau)).backward()
    assert mean_P.grad.abs().max() < 1e-11
    assert theta_KP.grad.abs().max() < 1e-11


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize(("solver", "parametrization", "update"), SOLVERS)
def test_every_solver_stays_at_the_map(solver, parametrization, update, tau):
    """100 steps could take it 3e-3 away; what moves it is rounding, to the sign of which Adam answers."""
    problem = HierarchicalRegression()
    ended = problem.solve(tau, solver, parametrization, update, 1e-3 * LR, 100, start=problem.map(tau))
    assert problem.distance(ended, tau) < 1e-4


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("update", ["gradient", "mean"])
@pytest.mark.parametrize("solver", ["proximal", "adamw"])
def test_one_learning_rate_finds_the_map_at_every_tau_in_noncentered_coordinates(solver, update, tau):
    """Near tau = 0 Theta is all but unidentified: the gradient needs very long to find it, the mean does not."""
    problem = HierarchicalRegression()
    ended = problem.solve(tau, solver, "noncentered", update, LR, STEPS)
    if update == "mean" or tau >= 1e3:
        assert problem.distance(ended, tau) < 1e-4
    at_map = problem.map(tau)
    best, found = ((problem.nll(theta) - log_prior(theta, mean, tau)).item() for mean, theta in (at_map, _banks(ended)))
    assert found == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("update", ["gradient", "mean"])
def test_centered_coordinates_find_the_map_while_the_prior_is_weak_and_are_stable_beyond(update, tau):
    problem = HierarchicalRegression()
    ended = problem.solve(tau, "adamw", "centered", update, LR, STEPS)
    if tau <= 1e3:
        assert problem.distance(ended, tau) < 1e-4
    zero_P = torch.zeros(3, dtype=torch.float64)
    before = problem.nll(zero_P.expand(4, 3))
    mean_P, theta_KP = _banks(ended)
    assert problem.nll(theta_KP) < before
    assert (theta_KP - mean_P).abs().max() < 2 * (problem.map(tau)[1] - problem.map(tau)[0]).abs().max() + 1e-3


def test_the_map_is_continuous_towards_both_ends():
    """From the solver that finds it at every tau: tau = 1e-6 is D separate fits, tau = 1e9 one shared."""
    problem = HierarchicalRegression()
    near_0, near_inf = (
        problem.solve(tau, "proximal", "noncentered", "mean", LR, STEPS).theta_KP() for tau in (1e-6, 1e9)
    )
    separate = torch.linalg.lstsq(problem.X_KNP, problem.y_KN[..., None]).solution[..., 0]
    shared = torch.linalg.lstsq(problem.X_KNP.flatten(0, 1), problem.y_KN.flatten()[:, None]).solution[:, 0]
    torch.testing.assert_close(near_0, separate, rtol=0, atol=1e-5)
    torch.testing.assert_close(near_inf, shared.expand(4, 3), rtol=0, atol=1e-5)


def _banks(hierarchy: Hierarchy) -> tuple[torch.Tensor, torch.Tensor]:
    return hierarchy.mean_P.detach(), hierarchy.theta_KP()


def test_a_rate_scales_a_coordinates_steps():
    """LoRA+ (Hayou et al. 2024): a learning rate of its own for each matrix, here each coordinate."""
    rate_P = torch.tensor([1.0, 16.0, 0.5, 4.0], dtype=torch.float64)
    mean_P, twins = nn.Parameter(draw(4)), [nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(4)]
    for twin, value in zip(twins, mean_P.detach(), strict=True):
        twin.data.fill_(value)
    ours = ProximalAdam([{"params": [mean_P], "rate": rate_P}], lr=0.1)
    theirs = torch.optim.AdamW(
        [{"params": [twin], "lr": 0.1 * rate.item()} for twin, rate in zip(twins, rate_P, strict=True)],
        weight_decay=0.0,
    )
    for _ in range(5):
        mean_P.grad = draw(4)
        for twin, gradient in zip(twins, mean_P.grad, strict=True):
            twin.grad = gradient[None].clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(mean_P.detach(), torch.cat([twin.detach() for twin in twins]), rtol=1e-12, atol=1e-12)


@given(st.integers(1, 5), st.floats(1e-3, 1e3))
def test_clipping_scales_long_rows_to_the_bound_and_leaves_short_ones(num_rows, max_norm):
    gradient_KP = draw(num_rows, 6) * torch.logspace(-3, 3, num_rows, dtype=torch.float64)[:, None]
    gradient_KP[0] = 0
    before = gradient_KP.clone()
    clip_rows_(gradient_KP, max_norm)
    for after, row in zip(gradient_KP, before, strict=True):
        expected = row if row.norm() <= max_norm else row * (max_norm / row.norm())
        torch.testing.assert_close(after, expected)
