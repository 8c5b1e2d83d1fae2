"""IVON against the exact mean-field posterior of a Gaussian model, and variational fits of adapters.

Shapes: K tasks, N observations of a task, P parameters of one adapter.
"""

from collections.abc import Callable

import pytest
import torch
from tiny import make_base, make_corpus
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bora_sweep.config import load_config
from bora_sweep.data.batches import collate
from bora_sweep.errors import InputError
from bora_sweep.train.device import make_accelerator
from bora_sweep.train.evaluate import score
from bora_sweep.train.fit import fit, run_epoch
from bora_sweep.train.methods.ivon import Ivon
from bora_sweep.train.methods.variational import RATE, VariationalTrainer
from bora_sweep.train.pack import Pack

SETTINGS = [
    "method=vi",
    "lora.rank=2",
    "train.device=cpu",
    "train.batch_size=6",
    "train.max_epochs=3",
    "train.learning_rate=0.01",
]
STEPS = 400  # of a chain that has settled


@pytest.mark.parametrize("tau", [0.5, 20.0])
def test_the_fixed_point_is_the_mean_field_posterior_of_a_gaussian_model(tau):
    """nll_k = (theta_k - y_k)' H (theta_k - y_k) / 2 with Theta at 0: mean of the MAP, variance 1 / (diag H + tau)."""
    generator = torch.Generator().manual_seed(0)
    root_PP = torch.randn(4, 4, dtype=torch.float64, generator=generator) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    H_PP, y_KP = root_PP.T @ root_PP, torch.randn(3, 4, dtype=torch.float64, generator=generator)
    mean_P, bank = nn.Parameter(torch.zeros(4, dtype=torch.float64), requires_grad=False), nn.Parameter(0 * y_KP)
    optimizer = Ivon(mean_P, bank, 0.1, num_tokens=10, tau=tau, rate=0.05)
    num_steps, means, variances = 2_500, [], []
    for step in range(num_steps):
        optimizer.perturb()
        bank.grad = (bank.detach() - y_KP) @ H_PP / 10
        optimizer.step()
        if step >= num_steps // 3:
            means.append(bank.detach().clone())
            variances.append(optimizer.std_KP().square())
    expected = torch.linalg.solve(H_PP + tau * torch.eye(4), H_PP @ y_KP.T).T
    variance_P = 1 / (H_PP.diagonal() + tau)
    torch.testing.assert_close(torch.stack(variances).mean((0, 1)), variance_P, rtol=0.1, atol=0)
    torch.testing.assert_close(torch.stack(means).mean(0), expected, rtol=0, atol=0.05)


def posterior(gradient: Callable[[Tensor], Tensor], shape: tuple[int, int], num_tokens: int, tau: float, steps: int):
    """Mean and std of q after IVON's steps on the nats whose gradient over theta_KP is given, with Theta at 0."""
    mean_P = nn.Parameter(torch.zeros(shape[1], dtype=torch.float64), requires_grad=False)
    bank = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    optimizer = Ivon(mean_P, bank, 0.1, num_tokens=num_tokens, tau=tau, rate=RATE)
    for _ in range(steps):
        optimizer.perturb()
        bank.grad = gradient(bank.detach()) / num_tokens
        optimizer.step()
    return bank.detach(), optimizer.std_KP()


def is_calibrated(z: Tensor) -> bool:
    """Central intervals hold the truth at their rate and z-scores have variance 1, within four standard errors.

    Beyond them 0.01 and RATE / 2: the mean keeps moving by the noise of the draws, RATE / 2 of the posterior variance.
    """
    z, n = z.flatten(), z.numel()
    rates = {level: (z.abs() < bound).double().mean().item() for level, bound in ((0.5, 0.6745), (0.9, 1.6449))}
    covers = all(abs(rate - q) < 4 * (q * (1 - q) / n) ** 0.5 + 0.01 for q, rate in rates.items())
    return covers and abs(z.square().mean().item() - 1) < 4 * (2 / n) ** 0.5 + RATE / 2


@pytest.mark.parametrize(
    ("tau", "num_documents", "steps"),
    [(50.0, 1, STEPS), (5.0, 1, STEPS), (5.0, 10, STEPS), (0.5, 10, 3 * STEPS)],  # far from the prior, far to go
)
def test_intervals_hold_the_true_coordinates_of_tasks_drawn_from_the_prior(tau, num_documents, steps):
    """y = X theta + noise with X'X diagonal: the exact posterior is mean-field, from prior-bound to data-bound."""
    K, P, N = 800, 4, 5 * num_documents
    generator = torch.Generator().manual_seed(num_documents + int(10 * tau))
    X_NP, _ = torch.linalg.qr(torch.randn(N, P, dtype=torch.float64, generator=generator))
    X_NP *= (num_documents * torch.tensor([0.5, 2.0, 8.0, 32.0])).sqrt()
    theta_KP = torch.randn(K, P, dtype=torch.float64, generator=generator) / tau**0.5
    y_KN = theta_KP @ X_NP.T + torch.randn(K, N, dtype=torch.float64, generator=generator)
    H_PP, target_KP = X_NP.T @ X_NP, y_KN @ X_NP
    mean_KP, std_KP = posterior(lambda bank: bank @ H_PP - target_KP, (K, P), K * N, tau, steps)
    z = (theta_KP - mean_KP) / std_KP
    assert is_calibrated(z)
    assert not is_calibrated(z / 1.5)
    assert not is_calibrated(z * 1.5)


@pytest.mark.parametrize(("tau", "num_documents"), [(4.0, 10), (1.0, 60)])
def test_intervals_hold_true_log_odds(tau, num_documents):
    """A coin for each coordinate: the exact posterior is independent over coordinates, though not Gaussian."""
    K, P = 800, 4
    generator = torch.Generator().manual_seed(num_documents + int(tau))
    theta_KP = torch.randn(K, P, dtype=torch.float64, generator=generator) / tau**0.5
    heads_KP = torch.binomial(torch.full_like(theta_KP, num_documents), theta_KP.sigmoid(), generator=generator)

    def gradient(bank: Tensor) -> Tensor:
        return num_documents * bank.sigmoid() - heads_KP

    mean_KP, std_KP = posterior(gradient, (K, P), K * num_documents, tau, STEPS)
    z = (theta_KP - mean_KP) / std_KP
    assert is_calibrated(z)
    assert not is_calibrated(z / 1.5)
    assert not is_calibrated(z * 1.5)


def test_a_short_fit_has_forgotten_the_hessian_that_it_began_with():
    """200 steps with N first_hessian = 20 where diag H is 1 or 2 and tau 1."""
    H_P = torch.tensor([1.0, 2.0], dtype=torch.float64)
    _, std_KP = posterior(lambda bank: bank * H_P, (500, 2), 20_000, 1.0, 200)
    torch.testing.assert_close(std_KP.square().mean(0), 1 / (H_P + 1), rtol=0.3, atol=0)


def test_the_hessian_of_adapters_is_the_exact_diagonal_on_average_over_q():
    """N h, from minibatches, against double backward on the whole training split; the mean is held where it is."""
    tau, num_draws = 5.0, 4
    own = ["lora.rank=1", "lora.target_modules=[layers.0.self_attn.v_proj]", f"prior.tau={tau}"]
    long = ["train.learning_rate=1e-12", "train.batch_size=16", "train.max_epochs=120", "train.patience=120"]
    config = load_config([*SETTINGS, *own, *long])
    trainer = VariationalTrainer(
        config, Pack(config, make_corpus({"a": 48, "b": 16}), make_base(), make_accelerator(config))
    )
    trainer.ivon.rate = 0.0
    while trainer.stopped_by is None:
        run_epoch(trainer.pack, [trainer])
    bank = trainer.hierarchy.task_KP
    assert bank is not None
    trainer.pack.adapted.head = None  # logits as a whole, whose loss can be differentiated twice
    batch = collate(trainer.pack.corpus, trainer.pack.corpus.split("train"))
    mean_KP, std_KP = bank.detach().clone(), trainer.ivon.std_KP()
    exact_KP, generator = torch.zeros_like(mean_KP), torch.Generator().manual_seed(0)
    for _ in range(num_draws):
        bank.data = mean_KP + std_KP * torch.empty_like(mean_KP).normal_(generator=generator)
        with sdpa_kernel(SDPBackend.MATH):
            (gradient_KP,) = torch.autograd.grad(
                score(trainer.pack, [trainer], batch)[0].sum(), bank, create_graph=True
            )
        for i, slope in enumerate(gradient_KP.sum(0)):  # no task's gradient depends on another task
            exact_KP[:, i] += torch.autograd.grad(slope, bank, retain_graph=True)[0][:, i] / num_draws
    torch.testing.assert_close(
        trainer.ivon.state[bank]["hessian"].sum() * trainer.pack.protocol.objective_tokens,
        exact_KP.sum(),
        rtol=0.2,
        atol=0,
    )


def test_groups_of_parameters_keep_their_own_prior():
    own = ["prior.tau=5", "prior.groups=matrix", "prior.group_scales.B=100"]
    config = load_config([*SETTINGS, *own])
    trainer = VariationalTrainer(config, Pack(config, make_corpus(), make_base(), make_accelerator(config)))
    std_P = trainer.ivon.std_KP()[0]
    names, index_P = trainer.pack.layout.parameter_groups("matrix")
    for group, tau in (("A", 5.0), ("B", 500.0)):
        nats = trainer.pack.protocol.objective_tokens * 1e-3
        torch.testing.assert_close(
            std_P[index_P == names.index(group)].mean(), torch.tensor(nats + tau).rsqrt().double()
        )


def test_the_precision_stays_positive_whatever_the_gradients():
    generator = torch.Generator().manual_seed(0)
    bank = nn.Parameter(torch.zeros(2, 5, dtype=torch.float64))
    optimizer = Ivon(nn.Parameter(torch.zeros(5, dtype=torch.float64)), bank, 0.1, num_tokens=100, tau=1.0)
    for _ in range(2000):
        optimizer.perturb()
        bank.grad = 10.0 ** torch.randint(-3, 4, (2, 5), generator=generator) * (0.5 - torch.rand(2, 5).double())
        optimizer.step()
        assert torch.isfinite(optimizer.std_KP()).all()


def test_theta_alone_takes_adamw_s_steps():
    start_P, gradient_P = torch.randn(5), torch.randn(3, 5)
    mean_P, twin_P = nn.Parameter(start_P.clone()), nn.Parameter(start_P.clone())
    bank = nn.Parameter(torch.zeros(2, 5))
    ours = Ivon(mean_P, bank, 0.1, num_tokens=10, tau=1.0)
    adamw = torch.optim.AdamW([twin_P], lr=0.1, weight_decay=0.0)
    for gradient in gradient_P:
        ours.perturb()
        mean_P.grad, twin_P.grad, bank.grad = gradient.clone(), gradient.clone(), torch.ones(2, 5)
        ours.step()
        adamw.step()
    assert torch.equal(mean_P, twin_P)


def test_a_variational_fit_learns_repeats_itself_and_is_surer_with_more_text():
    corpus = make_corpus({"a": 80, "b": 8})
    config = load_config([*SETTINGS, "prior.tau=5", "train.max_epochs=10", "train.patience=10"])
    one, again = (fit(config, corpus, make_base()) for _ in range(2))
    assert torch.equal(one.theta_KP, again.theta_KP)
    assert torch.equal(one.std_KP, again.std_KP)
    curve = [row["nll_nats"] for row in one.state.curve if row["split"] == "validation"]
    assert min(curve) < curve[0]
    assert one.nll_nats["validation"].sum() == pytest.approx(min(curve), rel=1e-9)
    assert one.std_KP[0].mean() < one.std_KP[1].mean()


@pytest.mark.parametrize("setting", ["prior.tau=0", "prior.tau=inf", "prior.parametrization=centered"])
def test_what_has_no_deviations_to_be_unsure_of_is_refused(setting):
    with pytest.raises(InputError, match="0 < tau < inf"):
        fit(load_config([*SETTINGS, setting]), make_corpus(), make_base())
