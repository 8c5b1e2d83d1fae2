"""IVON against the exact mean-field posterior of a Gaussian model, and variational fits of adapters."""

import numpy as np
import pytest
import torch
from conftest import make_base, make_corpus
from torch import nn

from bora_sweep.config import load_config
from bora_sweep.errors import InputError
from bora_sweep.train import fit
from bora_sweep.train.device import make_accelerator
from bora_sweep.train.ivon import Ivon
from bora_sweep.train.loop import finish, run_epoch
from bora_sweep.train.variational import VariationalTrainer

SETTINGS = [
    "method=vi",
    "lora.rank=2",
    "train.device=cpu",
    "train.batch_size=6",
    "train.max_epochs=3",
    "train.learning_rate=0.01",
]


@pytest.mark.parametrize("tau", [0.5, 20.0])
def test_the_fixed_point_is_the_mean_field_posterior_of_a_gaussian_model(tau):
    """nll_k = (theta_k - y_k)' H (theta_k - y_k) / 2 with Theta at 0: mean of the MAP, variance 1 / (diag H + tau)."""
    generator = torch.Generator().manual_seed(0)
    root_PP = torch.randn(4, 4, dtype=torch.float64, generator=generator) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    H_PP, y_KP = root_PP.T @ root_PP, torch.randn(3, 4, dtype=torch.float64, generator=generator)
    mean_P, bank = nn.Parameter(torch.zeros(4, dtype=torch.float64), requires_grad=False), nn.Parameter(0 * y_KP)
    optimizer = Ivon(mean_P, bank, 0.1, num_tokens=10, tau=tau, rate=0.02)
    num_steps, means, variances = 12_000, [], []
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


def test_draws_of_a_posterior_without_width_score_as_its_mean():
    corpus = make_corpus()
    config = load_config([*SETTINGS, "prior.tau=5"])
    trainer = VariationalTrainer(config, corpus, make_base(), make_accelerator(config))
    run_epoch([trainer])
    trainer.best["std_KP"].zero_()
    sampled = trainer.sampled_nll(3)
    done = finish(trainer)
    trainer.adapted.detach()
    for split, nll in done.nll_nats.items():
        np.testing.assert_allclose(sampled[split], nll, rtol=1e-12)


@pytest.mark.parametrize("setting", ["prior.tau=0", "prior.tau=inf", "prior.parametrization=centered"])
def test_what_has_no_deviations_to_be_unsure_of_is_refused(setting):
    with pytest.raises(InputError, match="0 < tau < inf"):
        fit(load_config([*SETTINGS, setting]), make_corpus(), make_base())
