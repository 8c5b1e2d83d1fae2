"""The law of a step: what it descends is the MAP objective, Eq. 6, of the whole training split."""

import numpy as np
import pytest
import torch
from tiny import make_base, make_corpus

from bora_sweep.config import load_config
from bora_sweep.data.batches import collate
from bora_sweep.model.likelihood import nll_nats
from bora_sweep.model.map_objective import map_objective
from bora_sweep.train.device import make_accelerator
from bora_sweep.train.make_trainer import make_trainer
from bora_sweep.train.pack import Pack
from bora_sweep.train.step import step
from bora_sweep.train.trainer import Trainer

SETTINGS = ["lora.rank=2", "train.device=cpu", "train.batch_size=64", "train.max_grad_norm=null", "train.solver=adamw"]


def objective(fit: Trainer, theta_KP: torch.Tensor, mean_P: torch.Tensor) -> torch.Tensor:
    """J of the training split, one document after the other, each under its task's adapter."""
    pack, nll = fit.pack, torch.zeros((), dtype=torch.float64)
    for n in pack.corpus.split("train"):
        batch = collate(pack.corpus, np.array([n]))
        tokens_BT, scored_BT = torch.from_numpy(batch.tokens_BT), torch.from_numpy(batch.scored_BT)
        nll = nll + nll_nats(pack.adapted(tokens_BT, theta_KP[batch.task_B]), tokens_BT, scored_BT).sum()
    return map_objective(nll, theta_KP, mean_P, fit.config.prior.tau, pack.corpus.num_tokens("train"))


@pytest.mark.parametrize("parametrization", ["centered", "noncentered"])
@pytest.mark.parametrize("micro_batch_size", ["null", "5"])
def test_the_gradient_of_a_step_is_that_of_the_map_objective(parametrization, micro_batch_size):
    """In float64, at random adapters; with a batch of the whole split a step's estimate is exact."""
    settings = [f"prior.parametrization={parametrization}", f"train.micro_batch_size={micro_batch_size}"]
    tau = float(np.exp(np.random.default_rng().uniform(0, 8)))
    config = load_config([*SETTINGS, *settings, f"prior.tau={tau}"])
    corpus, base = make_corpus(), make_base()
    with Pack(config, corpus, base, make_accelerator(config)) as pack:
        fit = make_trainer(config, pack)
        bank, gradients = fit.hierarchy.task_KP, {}
        mean_P = fit.hierarchy.mean_P.detach() + 0.1 * torch.randn_like(fit.hierarchy.mean_P)
        theta_KP = mean_P + 0.1 * torch.randn_like(bank)
        fit.hierarchy.set_adapters_(mean_P, theta_KP)

        log_prior = fit.hierarchy.log_prior().item()

        def note_gradients(*_: object) -> None:
            gradients.update((name, p.grad.clone()) for name, p in fit.hierarchy.named_parameters())

        fit.optimizer.optimizer.register_step_pre_hook(note_gradients)
        nats, num_tokens = step(pack, [fit], corpus.split("train"), 1)

        mean_P, theta_KP = mean_P.requires_grad_(), theta_KP.requires_grad_()
        J = objective(fit, theta_KP, mean_P)
        J_in_theta_KP, J_in_mean_P = torch.autograd.grad(J, [theta_KP, mean_P])
    assert (nats[0] - log_prior) / num_tokens == pytest.approx(J.item(), rel=1e-12)
    torch.testing.assert_close(gradients["task_KP"], J_in_theta_KP, rtol=0, atol=1e-12)
    if parametrization == "noncentered":  # Theta moves all tasks with it: the chain rule at theta_d = Theta + delta_d
        J_in_mean_P = J_in_mean_P + J_in_theta_KP.sum(0)
    torch.testing.assert_close(gradients["mean_P"], J_in_mean_P, rtol=0, atol=1e-12)
