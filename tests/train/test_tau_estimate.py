"""The evidence against exact marginals, estimates of tau against the truth, Fisher information by sampling."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from evidence_estimators import laplace_log_evidence, log_evidence_ratio, tau_by_diagonal_evidence, tau_by_mackay
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_base, make_corpus
from torch import Tensor
from torch.distributions import MultivariateNormal

from bora_sweep.config import load_config
from bora_sweep.data.batches import collate
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.layout import make_layout
from bora_sweep.train.device import make_accelerator
from bora_sweep.train.evaluate import score
from bora_sweep.train.fit import fit
from bora_sweep.train.make_trainer import make_trainer
from bora_sweep.train.methods.tau_estimate import (
    Curvature,
    TauEstimate,
    curvature,
    estimate_tau,
    noise_trace,
    tau_by_scores,
)
from bora_sweep.train.pack import Pack

CONFIG = load_config(
    [
        "lora.rank=1",
        "lora.target_modules=[q_proj]",
        "train.device=cpu",
        "train.batch_size=5",
        "prior.tau=inf",
        "train.max_epochs=3",
    ]
)


def linear_tasks(tau: float, seed: int, moved: float = 0.3, num_tasks: int = 12, size: int = 200) -> Curvature:
    """Scores of a Gaussian linear model, tasks of 20 to 100 like documents, Theta off its optimum by `moved`.

    s_n = F (delta_d + Delta) + noise of covariance F for each document n of task d, in F's eigenbasis, which neither
    norms nor traces see; F's eigenvalues fall over three decades.
    """
    rng = np.random.default_rng(seed)
    num_K = np.geomspace(20, 100, num_tasks).round().astype(int)
    fisher_P = np.geomspace(1e-2, 10, size)
    signal_KP = fisher_P * (rng.normal(0, tau**-0.5, (num_tasks, size)) + rng.normal(0, moved, size))
    documents = [rng.normal(signal_P, fisher_P**0.5, (n, size)) for n, signal_P in zip(num_K, signal_KP, strict=True)]
    return Curvature(
        nll_K=torch.zeros(num_tasks),
        score_KP=torch.tensor(np.stack([score_NP.sum(0) for score_NP in documents])),
        fisher_KP=torch.tensor(num_K[:, None] * fisher_P),
        noise_K=torch.stack([noise_trace(torch.tensor(s_NP), torch.ones(len(s_NP))) for s_NP in documents]),
        trace_square_K=torch.tensor(num_K**2 * np.square(fisher_P).sum()),
        num_tokens_K=torch.tensor(num_K),
    )


def covered(tau: float, estimates: list[TauEstimate]) -> float:
    return float(np.mean([estimate.low <= tau <= estimate.high for estimate in estimates]))


@pytest.mark.parametrize("tau", [30.0, 300.0, 3000.0])
def test_scores_give_the_tau_of_a_linear_model_without_bias_and_intervals_that_hold_it(tau):
    estimates = [tau_by_scores(linear_tasks(tau, seed)) for seed in range(300)]
    assert 0.91 < covered(tau, estimates) < 0.985
    if tau < 1000:  # above, an estimate of 1 / tau below 0 is cut off there
        variance = np.array([1 / estimate.tau for estimate in estimates])
        assert abs(variance.mean() * tau - 1) < 4 * variance.std() * tau / math.sqrt(len(estimates))
        assert variance.std() * tau < 0.2


def test_scores_do_not_see_what_theta_misses():
    near, far = (tau_by_scores(linear_tasks(100.0, 1, moved)) for moved in (0.0, 1.0))
    assert near.tau == pytest.approx(far.tau, rel=1e-9)


def test_scores_of_tasks_that_are_all_alike_allow_tau_inf():
    estimates = [tau_by_scores(linear_tasks(math.inf, seed)) for seed in range(100)]
    assert covered(math.inf, estimates) > 0.9
    assert 0.2 < np.mean([math.isinf(estimate.tau) for estimate in estimates]) < 0.8
    assert all(estimate.low <= estimate.tau for estimate in estimates)


@pytest.mark.parametrize("tau", [30.0, 300.0])
def test_diagonal_evidence_gives_the_tau_of_a_model_whose_fisher_information_is_diagonal(tau):
    tasks = [linear_tasks(tau, seed, moved=0.0) for seed in range(300)]
    estimates = [tau_by_diagonal_evidence(task.score_KP, task.fisher_KP) for task in tasks]
    assert covered(tau, estimates) > 0.91
    away = np.log([estimate.tau for estimate in estimates]) - math.log(tau)
    assert abs(away.mean()) < 4 * away.std() / math.sqrt(len(away))


def orthogonal_regression(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """y_N, and X_NP whose columns are orthogonal and of unlike lengths; the lengths' squares, h_P."""
    rng = np.random.default_rng(seed)
    X_NP = np.linalg.qr(rng.normal(size=(9, 5)))[0] * np.geomspace(0.1, 20, 5)
    return torch.from_numpy(rng.normal(0, 2, 9)), torch.from_numpy(X_NP), torch.from_numpy((X_NP**2).sum(0))


def log_marginal(y_N: Tensor, X_NP: Tensor, tau: float) -> Tensor:
    """log N(y; 0, I + X X' / tau): y = X delta + standard noise, delta ~ N(0, I/tau) integrated out."""
    return MultivariateNormal(torch.zeros_like(y_N), torch.eye(len(y_N)) + X_NP @ X_NP.T / tau).log_prob(y_N)


@given(st.floats(1e-3, 1e5), st.integers(0, 1000))
@settings(deadline=None)
def test_the_evidence_of_a_diagonal_gaussian_model_is_its_marginal_likelihood(tau, seed):
    y_N, X_NP, h_P = orthogonal_regression(seed)
    flat = MultivariateNormal(torch.zeros_like(y_N), torch.eye(len(y_N), dtype=y_N.dtype))
    exact = log_marginal(y_N, X_NP, tau)
    ratio = log_evidence_ratio(tau, (X_NP.T @ y_N)[None], h_P[None])
    torch.testing.assert_close(ratio[0] + flat.log_prob(y_N), exact)

    delta_P = X_NP.T @ y_N / (h_P + tau)
    nll = -flat.log_prob(y_N - X_NP @ delta_P)
    at_map = Curvature(nll[None], tau * delta_P[None], h_P[None], *torch.zeros(3, 1))
    torch.testing.assert_close(laplace_log_evidence(tau, at_map, delta_P[None])[0], exact)


def test_the_best_tau_of_the_evidence_is_mackay_s_fixed_point():
    tasks = linear_tasks(50.0, 3)
    score_KP, h_KP = tasks.score_KP, tasks.fisher_KP
    tau = tau_by_diagonal_evidence(score_KP, h_KP).tau
    best = log_evidence_ratio(tau, score_KP, h_KP).sum()
    assert all(log_evidence_ratio(tau * factor, score_KP, h_KP).sum() < best for factor in (0.9, 0.99, 1.01, 1.1))
    assert tau_by_mackay(score_KP / (h_KP + tau), h_KP) == pytest.approx(tau, rel=1e-6)
    assert tau_by_mackay(torch.zeros_like(h_KP), h_KP) == math.inf
    assert tau_by_diagonal_evidence(torch.zeros_like(h_KP), h_KP).tau == math.inf


def exact_fisher(adapted: AdaptedModel, corpus, n: int, theta_P: Tensor) -> Tensor:
    """F_PP of document n, the sum over its tokens of J' (diag p - p p') J, J the derivative of a token's logits."""
    tokens_BT = torch.from_numpy(collate(corpus, np.array([n])).tokens_BT)

    def logits(theta_P: Tensor) -> Tensor:
        return adapted(tokens_BT, theta_P[None])[0, :-1]

    J_TVP = torch.autograd.functional.jacobian(logits, theta_P)
    p_TV = logits(theta_P).softmax(-1)
    mean_TP = torch.einsum("tv,tvp->tp", p_TV, J_TVP)
    return torch.einsum("tv,tvp,tvq->pq", p_TV, J_TVP, J_TVP) - mean_TP.T @ mean_TP


def test_the_curvature_is_the_exact_gradient_and_in_expectation_the_exact_fisher_information():
    corpus, base = make_corpus({"a": 12, "b": 8, "c": 6}), make_base()
    adapted = AdaptedModel(base, make_layout(base, CONFIG.lora))
    size = adapted.layout.num_parameters
    theta_KP = 0.2 * torch.randn(3, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    train = corpus.split("train")
    fisher_NPP = torch.stack([exact_fisher(adapted, corpus, n, theta_KP[corpus.documents["task"][n]]) for n in train])
    adapted.remove_hooks()
    task_N = torch.from_numpy(corpus.documents["task"].to_numpy()[train])
    fisher_KPP = torch.stack([fisher_NPP[task_N == task].sum(0) for task in range(3)])
    found = curvature(CONFIG, corpus, base, theta_KP, num_samples=200)
    exact_KP = fisher_KPP.diagonal(dim1=1, dim2=2)
    assert ((found.fisher_KP - exact_KP) / exact_KP).abs().mean() < 0.1
    torch.testing.assert_close(found.fisher_KP.sum(), exact_KP.sum(), rtol=0.05, atol=0)
    torch.testing.assert_close(found.trace_square_K.sum(), fisher_KPP.square().sum(), rtol=0.15, atol=0)

    config = dataclasses.replace(CONFIG, prior=dataclasses.replace(CONFIG.prior, tau=1.0))
    trainer = make_trainer(config, Pack(config, corpus, base, make_accelerator(config)))
    trainer.hierarchy.mean_P.data.zero_()
    trainer.hierarchy.task_KP.data.copy_(theta_KP)
    nll_B = score(trainer.pack, [trainer], collate(corpus, corpus.split("train")))[0][0]
    nll_B.sum().backward()
    trainer.pack.close()
    torch.testing.assert_close(found.nll_K.sum(), nll_B.detach().sum())
    torch.testing.assert_close(found.score_KP, -trainer.hierarchy.task_KP.grad)
    assert found.num_tokens_K.sum() == corpus.num_tokens("train")


def test_micro_batches_change_no_gradient_and_the_base_is_given_back():
    corpus, base = make_corpus(), make_base()
    size = make_layout(base, CONFIG.lora).num_parameters
    theta_KP = torch.full((3, size), 0.1, dtype=torch.float64)
    whole, parts = (
        curvature(load_config([f"train.micro_batch_size={rows}"], base=CONFIG), corpus, base, theta_KP)
        for rows in ("null", 2)
    )
    torch.testing.assert_close(parts.score_KP, whole.score_KP)
    assert all(not module._forward_hooks for module in base.modules())


def test_documents_show_the_noise_of_a_score_whatever_its_mean():
    rng = np.random.default_rng(0)
    num_tokens_N = torch.from_numpy(rng.integers(5, 50, 30))
    mean_P, variance_P = torch.linspace(-2, 2, 40), torch.linspace(0.1, 3, 40)
    noise_MNP = torch.from_numpy(rng.normal(size=(200, 30, 40)))
    scores_MNP = num_tokens_N[:, None] * mean_P + noise_MNP * (num_tokens_N[:, None] * variance_P).sqrt()
    found = torch.stack([noise_trace(score_NP, num_tokens_N) for score_NP in scores_MNP]).mean()
    torch.testing.assert_close(found, (num_tokens_N.sum() * variance_P.sum()).double(), rtol=0.01, atol=0)


def test_tau_of_a_corpus_from_its_shared_fit():
    corpus, base = make_corpus({"a": 24, "b": 16, "c": 6, "d": 4}), make_base()
    assert (corpus.documents.query("split == 'train'").groupby("task").size() == [12, 8, 4, 2]).all()
    estimate = estimate_tau(CONFIG, corpus, base, fit(CONFIG, corpus, base))
    assert 0 < estimate.low <= estimate.tau <= estimate.high
    again = estimate_tau(CONFIG, corpus, base, fit(CONFIG, corpus, base))
    assert again == estimate
