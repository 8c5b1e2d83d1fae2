"""The MAP objective against an independent reference in float64, its gradient by hand, and its limits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from tiny import scored_until

from bora_sweep.model.likelihood import nll_nats
from bora_sweep.model.map_objective import map_objective

VOCABULARY = 5
tasks, sizes, taus, seeds = st.integers(1, 5), st.integers(1, 6), st.floats(1e-3, 1e4), st.integers(0, 10_000)


class SoftmaxTasks:
    """One document for each task, whose token i + 1 has the logits X_i theta_k of its task; theta is a vector of P."""

    def __init__(self, num_tasks: int, size: int, seed: int, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.length = 7
        self.X_KTVP = draw(num_tasks, self.length, VOCABULARY, size)
        self.tokens_KT = torch.randint(VOCABULARY, (num_tasks, self.length), generator=generator)
        self.theta_KP, self.mean_P = draw(num_tasks, size), draw(size)
        self.scored_KT = scored_until(torch.full((num_tasks,), self.length), self.length)
        self.num_tokens = num_tasks * (self.length - 1)

    def nll(self, theta_KP: torch.Tensor) -> torch.Tensor:
        logits_KTV = (self.X_KTVP @ theta_KP[:, None, :, None]).squeeze(-1)
        return nll_nats(logits_KTV, self.tokens_KT, self.scored_KT).sum()

    def nll_gradient(self) -> torch.Tensor:
        """sum_i X_i' (softmax(X_i theta) - e_{i+1}) for each task, by hand."""
        gradient_KP = torch.zeros_like(self.theta_KP)
        for task, theta_P in enumerate(self.theta_KP):
            for i in range(self.length - 1):
                X_VP = self.X_KTVP[task, i]
                residual_V = torch.exp(X_VP @ theta_P) / torch.exp(X_VP @ theta_P).sum()
                residual_V[self.tokens_KT[task, i + 1]] -= 1
                gradient_KP[task] += X_VP.T @ residual_V
        return gradient_KP


def reference(problem: SoftmaxTasks, tau: float) -> float:
    """-log (Eq. 4 x Eq. 5) / N in float64 with numpy and scipy, without the constant of the normal density."""
    X, theta, mean = (tensor.double().numpy() for tensor in (problem.X_KTVP, problem.theta_KP, problem.mean_P))
    log_posterior = 0.0
    for task, theta_P in enumerate(theta):
        for i in range(problem.length - 1):
            logits_V = X[task, i] @ theta_P
            log_posterior += logits_V[problem.tokens_KT[task, i + 1]] - np.log(np.exp(logits_V).sum())
        log_posterior += multivariate_normal(mean, np.eye(len(mean)) / tau).logpdf(theta_P)
        log_posterior -= 0.5 * len(mean) * math.log(tau / (2 * math.pi))
    return -log_posterior / problem.num_tokens


@given(tasks, sizes, taus, seeds)
def test_it_is_the_negative_log_posterior_per_token(num_tasks, size, tau, seed):
    for dtype, rel in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        problem = SoftmaxTasks(num_tasks, size, seed, dtype)
        nll = problem.nll(problem.theta_KP)
        objective = map_objective(nll, problem.theta_KP, problem.mean_P, tau, problem.num_tokens)
        assert objective.dtype == dtype
        assert objective.item() == pytest.approx(reference(problem, tau), rel=rel)


@given(tasks, sizes, taus, seeds)
def test_its_gradient_in_theta_and_the_tasks_equals_the_one_by_hand(num_tasks, size, tau, seed):
    problem = SoftmaxTasks(num_tasks, size, seed)
    theta_KP, mean_P = problem.theta_KP.clone().requires_grad_(), problem.mean_P.clone().requires_grad_()
    map_objective(problem.nll(theta_KP), theta_KP, mean_P, tau, problem.num_tokens).backward()
    delta_KP = problem.theta_KP - problem.mean_P
    expected_KP = (problem.nll_gradient() + tau * delta_KP) / problem.num_tokens
    torch.testing.assert_close(theta_KP.grad, expected_KP, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mean_P.grad, -tau * delta_KP.sum(0) / problem.num_tokens, rtol=1e-9, atol=1e-9)


@given(tasks, sizes, seeds)
def test_each_coordinate_may_have_its_own_precision(num_tasks, size, seed):
    problem = SoftmaxTasks(num_tasks, size, seed)
    tau_P = torch.rand(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.1
    mean_P = problem.mean_P.clone().requires_grad_()
    map_objective(problem.nll(problem.theta_KP), problem.theta_KP, mean_P, tau_P, problem.num_tokens).backward()
    pull_P = -tau_P * (problem.theta_KP - problem.mean_P).sum(0) / problem.num_tokens
    torch.testing.assert_close(mean_P.grad, pull_P)


@given(tasks, sizes, taus, st.integers(2, 9), seeds)
def test_n_times_the_data_is_like_tau_over_n(num_tasks, size, tau, copies, seed):
    problem = SoftmaxTasks(num_tasks, size, seed)
    nll, theta_KP, mean_P = problem.nll(problem.theta_KP), problem.theta_KP, problem.mean_P
    repeated = map_objective(copies * nll, theta_KP, mean_P, tau, copies * problem.num_tokens)
    once = map_objective(nll, theta_KP, mean_P, tau / copies, problem.num_tokens)
    torch.testing.assert_close(repeated, once, rtol=1e-12, atol=1e-12)


@given(tasks, sizes, seeds)
def test_at_tau_0_it_is_the_nll_per_token_and_does_not_pull(num_tasks, size, seed):
    problem = SoftmaxTasks(num_tasks, size, seed)
    theta_KP, mean_P = problem.theta_KP.clone().requires_grad_(), problem.mean_P.clone().requires_grad_()
    nll = problem.nll(theta_KP)
    objective = map_objective(nll, theta_KP, mean_P, 0.0, problem.num_tokens)
    assert objective == nll / problem.num_tokens
    objective.backward()
    assert not mean_P.grad.any()
    torch.testing.assert_close(theta_KP.grad, problem.nll_gradient() / problem.num_tokens, rtol=1e-9, atol=1e-9)
