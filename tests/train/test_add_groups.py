"""New tasks of groups: each is the MAP under the held Theta_g of its group, as under a Theta that is that Theta_g."""

import math
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from tiny import make_base, make_corpus

from bora_sweep.config import Config, load_config
from bora_sweep.data.some_tasks import some_tasks
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.process import Interrupted
from bora_sweep.train.fit import fit
from bora_sweep.train.state import Fit, Start

SIZES = {"a": 14, "b": 10, "c": 8, "d": 10}
GROUP_K = np.array([1, 0, 1, 2])
UNKNOWN = 2
"""A group that no run has fitted: its Theta_g is Theta, and task d alone is of it."""


def make_config(tau: float, tau_2: float | None, *settings: str) -> Config:
    groups = [] if tau_2 is None else ["data.group_column=group", "data.synthetic.num_groups=3", f"prior.tau_2={tau_2}"]
    return load_config(
        ["method=add", f"prior.tau={tau}", "train.batch_size=8", "train.learning_rate=0.02", "lora.rank=2",
         "train.max_epochs=6", "train.patience=3", "train.max_grad_norm=null", "train.device=cpu", *groups, *settings]
    )  # fmt: skip


def make_grouped() -> TokenizedCorpus:
    return replace(make_corpus(SIZES), groups=("x", "y", "new"), group_K=GROUP_K)


def theta_GP(num_parameters: int) -> torch.Tensor:
    """Theta_g of the groups that are known, and Theta in the last row."""
    return 0.05 * torch.randn(3, num_parameters, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def add(config: Config, corpus: TokenizedCorpus, of_group_GP: torch.Tensor | None = None, **others: Any) -> Fit:
    start = None
    if of_group_GP is not None:
        centre_KP = of_group_GP[torch.as_tensor(corpus.group_K)]
        start = Start(of_group_GP[UNKNOWN], centre_KP, theta_GP=of_group_GP)
    return fit(config, corpus, make_base(), start=start, **others)


@pytest.fixture(scope="module")
def of_group_GP() -> torch.Tensor:
    size = add(make_config(math.inf, None), make_corpus(SIZES)).layout.num_parameters
    return theta_GP(size)


@pytest.mark.parametrize("tau_2", [0.0, 7.0])
def test_a_task_gets_what_an_add_to_two_levels_gives_it_whose_theta_is_the_theta_of_its_group(tau_2, of_group_GP):
    tau, corpus = float(np.exp(np.random.default_rng().uniform(1, 6))), make_grouped()
    done = add(make_config(tau, tau_2), corpus, of_group_GP)
    assert torch.equal(done.mean_P, of_group_GP[UNKNOWN])
    assert done.theta_GP is not None
    torch.testing.assert_close(done.theta_GP, of_group_GP, rtol=0, atol=1e-12)
    for k in range(3):
        own = replace(some_tasks(corpus, [k]), groups=(), group_K=None)
        start = Start(of_group_GP[GROUP_K[k]], of_group_GP[GROUP_K[k]][None])
        alone = fit(make_config(tau, None), own, make_base(), start=start)
        torch.testing.assert_close(done.theta_KP[k], alone.theta_KP[0], rtol=0, atol=1e-9)
        assert done.state.best_epochs[k] == alone.state.best_epochs[0] > 0
        assert (done.theta_KP[k] - of_group_GP[GROUP_K[k]]).norm() > 0.01


def test_the_prior_of_a_task_in_a_group_that_is_not_known_is_the_one_with_theta_g_integrated_out(of_group_GP):
    tau, tau_2 = np.exp(np.random.default_rng().uniform(1, 6, 2)).tolist()
    scales = ["prior.groups=task", f"prior.group_scales.d={tau_2 / (tau + tau_2)}"]
    corpus = make_grouped()
    done = add(make_config(tau, tau_2, *scales), corpus, of_group_GP)
    mean_P = of_group_GP[UNKNOWN]
    own = replace(some_tasks(corpus, [3]), groups=(), group_K=None)
    variance = 1 / tau + 1 / tau_2
    alone = fit(make_config(1 / variance, None), own, make_base(), start=Start(mean_P, mean_P[None]))
    torch.testing.assert_close(done.theta_KP[3], alone.theta_KP[0], rtol=0, atol=1e-9)


def test_without_a_fit_each_task_has_the_adapter_of_its_group(of_group_GP):
    done = add(make_config(math.inf, 7.0), make_grouped(), of_group_GP)
    torch.testing.assert_close(done.theta_KP, of_group_GP[torch.as_tensor(GROUP_K)], rtol=0, atol=1e-12)
    assert done.state.step == 0


def test_an_interrupted_fit_goes_on_to_the_same_numbers(of_group_GP, tmp_path):
    """A checkpoint has the groups' adapters too: the resume is given no start."""
    config, corpus, calls = make_config(20.0, 7.0), make_grouped(), count()

    def stop() -> None:
        if next(calls) == 8:
            raise Interrupted

    with pytest.raises(Interrupted):
        add(config, corpus, of_group_GP, folder=tmp_path, check_stop=stop)
    assert list(tmp_path.glob("checkpoint-*"))
    resumed, whole = add(config, corpus, folder=tmp_path), add(config, corpus, of_group_GP)
    assert torch.equal(resumed.theta_KP, whole.theta_KP)
    assert resumed.theta_GP is not None
    assert whole.theta_GP is not None
    assert torch.equal(resumed.theta_GP, whole.theta_GP)
