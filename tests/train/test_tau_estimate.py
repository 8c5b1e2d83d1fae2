"""The evidence against exact marginals, estimates of tau against the truth, Fisher information by sampling."""

import dataclasses
import itertools
import math
import threading

import numpy as np
import pytest
import torch
from evidence_estimators import laplace_log_evidence, log_evidence_ratio, tau_by_diagonal_evidence, tau_by_mackay
from hypothesis import given, settings
from hypothesis import strategies as st
from tensor_memory import LargestTensor, peak_bytes
from tiny import VOCABULARY, make_base, make_corpus
from torch import Tensor
from torch.distributions import MultivariateNormal
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedModel

from bora_sweep.config import load_config
from bora_sweep.data.batches import collate
from bora_sweep.model import linear_cross_entropy
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.layout import make_layout
from bora_sweep.model.likelihood import Likelihood
from bora_sweep.train.device import make_accelerator
from bora_sweep.train.evaluate import score
from bora_sweep.train.fit import fit
from bora_sweep.train.make_trainer import make_trainer
from bora_sweep.train.methods import document_gradients, tau_estimate
from bora_sweep.train.methods.document_gradients import DocumentPass
from bora_sweep.train.methods.task_sums import TaskSums, blocks_of, task_sums
from bora_sweep.train.methods.tau_estimate import (
    NUM_SAMPLES,
    Curvature,
    TauEstimate,
    curvature,
    estimate_tau,
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


def noise_trace(score_NP: Tensor, num_tokens_N: Tensor) -> Tensor:
    """The trace of the score's covariance from its documents, by its formula, with all documents at once."""
    share_N = num_tokens_N / num_tokens_N.sum()
    return (score_NP - share_N[:, None] * score_NP.sum(0)).square().sum() / (1 - share_N.square().sum())


def trace_of_square(draw_SNP: Tensor) -> Tensor:
    """tr(F^2) from draws of documents' scores, by its formula, with all documents at once."""
    S, N, _ = draw_SNP.shape
    pairs = [
        (draw_SNP[s, n] @ draw_SNP[t, m]) ** 2
        for s in range(S) for t in range(S) if s != t for n in range(N) for m in range(N)
    ]  # fmt: skip
    return torch.stack(pairs).sum() / (S * (S - 1))


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


@pytest.mark.parametrize("family", ["opt", "gemma2"])
def test_blocks_of_a_tasks_documents_change_nothing(family, monkeypatch):
    """With the draws of 12 documents in memory, of 5 and of 2, in batches of 2: the same draws, made again."""
    corpus, base = make_corpus({"a": 24, "b": 10, "c": 2}), make_base("opt") if family == "opt" else make_gemma2()
    config = load_config(["train.micro_batch_size=2"], base=CONFIG)
    size = make_layout(base, CONFIG.lora).num_parameters
    theta_KP = 0.1 * torch.randn(3, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for documents in (12, 5, 2):
        monkeypatch.setitem(tau_estimate.DRAWS_BYTES, "cpu", documents * 4 * size * 8)
        found.append(curvature(config, corpus, base, theta_KP))
    for one in found[1:]:
        for name, value in vars(found[0]).items():
            torch.testing.assert_close(getattr(one, name), value, msg=name)
    assert found[0].trace_square_K.min() > 0


def make_gemma2() -> PreTrainedModel:
    """A model whose logits no linear head alone makes: it caps them."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return Gemma2ForCausalLM(Gemma2Config(vocab_size=VOCABULARY, **sizes, **heads)).double().eval()


def test_memory_does_not_grow_with_the_documents_of_a_task(monkeypatch, tmp_path):
    base, config = make_base(), load_config(["train.micro_batch_size=4", "lora.rank=8"], base=CONFIG)
    size = make_layout(base, config.lora).num_parameters
    of_document = NUM_SAMPLES * size * 8

    def peak(documents: int, kept: int) -> int:
        monkeypatch.setitem(tau_estimate.DRAWS_BYTES, "cpu", kept * of_document)
        corpus = make_corpus({"a": 2 * documents, "b": 4})
        theta_KP = torch.zeros(2, size, dtype=torch.float64)
        return peak_bytes(lambda: curvature(config, corpus, base, theta_KP), tmp_path)

    few, many = peak(12, kept=8), peak(64, kept=8)
    assert many < 1.05 * few
    assert peak(64, kept=64) > few + 45 * of_document  # what all draws at once would take


def test_logits_are_in_memory_a_chunk_at_a_time(monkeypatch):
    corpus, base = make_corpus({"a": 24, "b": 8}), make_base("opt-350m")
    for module in (document_gradients, linear_cross_entropy):
        monkeypatch.setitem(module.CHUNK, "cpu", 16)
    monkeypatch.setattr(linear_cross_entropy, "_reused", threading.local())
    adapted = AdaptedModel(base, make_layout(base, CONFIG.lora))
    theta_P, batch = torch.zeros(adapted.layout.num_parameters, dtype=torch.float64), collate(corpus, np.arange(9))
    assert batch.scored_BT.sum() > 48
    with LargestOfVocabulary() as largest:
        made = DocumentPass(Likelihood(adapted, []), batch, theta_P, 2, (0, 0))
        made.nll_and_score()
        made.draws()
    adapted.remove_hooks()
    assert largest.positions == 16


class LargestOfVocabulary(LargestTensor):
    """The most positions of a tensor that has a number for each token of the vocabulary."""

    positions = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = super().__torch_dispatch__(func, types, args, kwargs)
        if (
            isinstance(made, torch.Tensor)
            and made.dim() > 1
            and made.shape[-1] == VOCABULARY
            and made.is_floating_point()
        ):
            self.positions = max(self.positions, made.numel() // VOCABULARY)
        return made


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


class Made:
    """Gradients that are given, of the documents of a batch."""

    def __init__(self, nll_N: Tensor, score_NP: Tensor, draw_SNP: Tensor, rows: range) -> None:
        self.given = nll_N[rows], score_NP[rows]
        self.draw_SBP = draw_SNP[:, rows]

    def nll_and_score(self) -> tuple[Tensor, Tensor]:
        return self.given

    def draws(self) -> Tensor:
        return self.draw_SBP


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(1, 12), st.integers(2, 4), st.integers(0, 99))
@settings(deadline=None)
def test_sums_over_batches_and_blocks_are_the_formulas_over_all_documents(sizes, most, num_samples, seed):
    rng, count = np.random.default_rng(seed), sum(sizes)
    nll_N, score_NP = torch.from_numpy(rng.exponential(size=count)), torch.from_numpy(rng.normal(1, 2, (count, 5)))
    draw_SNP = torch.from_numpy(rng.normal(size=(num_samples, count, 5)))
    num_tokens_N = torch.from_numpy(rng.integers(3, 40, count))
    ends = np.cumsum([0, *sizes])
    rows_M = [range(start, end) for start, end in itertools.pairwise(ends)]
    share_N = num_tokens_N.double() / num_tokens_N.sum()
    sums = task_sums(
        lambda number: Made(nll_N, score_NP, draw_SNP, rows_M[number]),
        [share_N[rows] for rows in rows_M],
        torch.zeros(5, dtype=torch.float64),
        most,
    )
    fisher_P = draw_SNP.square().mean(0).sum(0)
    noise = fisher_P.sum() if count == 1 else noise_trace(score_NP, num_tokens_N.double())
    torch.testing.assert_close(sums.nll, nll_N.sum())
    torch.testing.assert_close(sums.score_P, score_NP.sum(0))
    torch.testing.assert_close(sums.fisher_P, fisher_P)
    torch.testing.assert_close(sums.noise(), noise)
    torch.testing.assert_close(sums.square, trace_of_square(draw_SNP))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 30))
def test_blocks_hold_what_they_may_and_leave_no_batch_out(sizes, most):
    blocks = blocks_of(sizes, most)
    assert [number for block in blocks for number in block] == list(range(len(sizes)))
    for block, after in zip(blocks, [*blocks[1:], None], strict=True):
        rows = sum(sizes[number] for number in block)
        assert rows <= most or len(block) == 1
        assert after is None or rows + sizes[after.start] > most


def test_documents_show_the_noise_of_a_score_whatever_its_mean():
    rng = np.random.default_rng(0)
    num_tokens_N = torch.from_numpy(rng.integers(5, 50, 30))
    mean_P, variance_P = torch.linspace(-2, 2, 40), torch.linspace(0.1, 3, 40)
    noise_MNP = torch.from_numpy(rng.normal(size=(200, 30, 40)))
    scores_MNP = num_tokens_N[:, None] * mean_P + noise_MNP * (num_tokens_N[:, None] * variance_P).sqrt()
    sums = [TaskSums(mean_P) for _ in scores_MNP]
    for of_task, score_NP in zip(sums, scores_MNP, strict=True):
        of_task.add_documents(torch.zeros(30), score_NP, num_tokens_N / num_tokens_N.sum())
    found = torch.stack([of_task.noise() for of_task in sums]).mean()
    torch.testing.assert_close(found, (num_tokens_N.sum() * variance_P.sum()).double(), rtol=0.01, atol=0)


def test_tau_of_a_corpus_from_its_shared_fit():
    corpus, base = make_corpus({"a": 24, "b": 16, "c": 6, "d": 4}), make_base()
    assert (corpus.documents.query("split == 'train'").groupby("task").size() == [12, 8, 4, 2]).all()
    estimate = estimate_tau(CONFIG, corpus, base, fit(CONFIG, corpus, base))
    assert 0 < estimate.low <= estimate.tau <= estimate.high
    again = estimate_tau(CONFIG, corpus, base, fit(CONFIG, corpus, base))
    assert again == estimate
