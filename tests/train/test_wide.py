"""`method=shared_wide`: its rank, its scale, and that it is the shared fit of that rank."""

import numpy as np
import pytest
import torch
from tiny import make_base, make_corpus

from bora_sweep.config import Config, load_config
from bora_sweep.model.lora import Site
from bora_sweep.model.sites import find_sites
from bora_sweep.model.wide_rank import largest_useful_rank, wide_rank
from bora_sweep.train.fit import fit
from bora_sweep.tune.points import Point, trial_config

SETTINGS = ["train.device=cpu", "train.batch_size=6", "train.max_epochs=2", "train.learning_rate=0.01", "lora.rank=2"]


def make_sites(seed: int | None = None) -> list[Site]:
    sizes = np.random.default_rng(seed).integers(4, 60, (5, 2)).tolist()
    return [Site(f"layers.{n}.proj", *size, transposed=False) for n, size in enumerate(sizes)]


def wide_config(*settings: str) -> Config:
    return trial_config(load_config([*SETTINGS, *settings]), Point(3, float("inf"), method="shared_wide"), 0)


def test_it_has_as_many_parameters_as_the_tasks_together():
    sites, rank = make_sites(), int(np.random.default_rng().integers(1, 4))
    num_tasks = largest_useful_rank(sites) // rank
    for tasks in (1, num_tasks):
        wide = wide_rank(rank, tasks, sites)
        sums = [sum(r * (site.in_features + site.out_features) for site in sites) for r in (wide, rank)]
        assert sums[0] == tasks * sums[1]


def test_it_is_bounded_where_b_a_is_any_matrix_at_every_site():
    sites = make_sites()
    bound = wide_rank(8, 10_000, sites)
    rng = np.random.default_rng()
    fullest = [np.linalg.matrix_rank(rng.normal(size=(site.out_features, site.in_features))) for site in sites]
    assert bound == max(fullest)  # one less, and a matrix of some site is out of reach


@pytest.mark.parametrize("variant", ["lora", "rslora", "lora_plus", "dora"])
@pytest.mark.parametrize("alpha", ["null", "3"])
def test_the_scale_of_an_update_is_that_of_the_tasks_adapters(variant, alpha):
    settings = [f"lora.variant={variant}", f"lora.alpha={alpha}"]
    wide = wide_config(*settings, "search.wide_rank=12")
    assert wide.lora.rank == 12
    assert wide.lora.scale == pytest.approx(load_config([*SETTINGS, *settings]).lora.scale, rel=1e-12)


def test_it_is_the_shared_fit_of_its_rank():
    corpus, base = make_corpus(), make_base()
    wide = fit(wide_config("search.wide_rank=6"), corpus, base)
    shared = fit(load_config([*SETTINGS, "prior.tau=inf", "lora.rank=6"]), corpus, base)
    assert torch.equal(wide.mean_P, shared.mean_P)
    assert torch.equal(wide.theta_KP, shared.theta_KP)
    assert (wide.nll_nats["test"] == shared.nll_nats["test"]).all()


def test_the_trial_notes_where_a_higher_rank_would_add_nothing():
    corpus, base = make_corpus(), make_base()
    bound = largest_useful_rank(find_sites(base, load_config(SETTINGS).lora))
    configs = {rank: wide_config(f"search.wide_rank={rank}") for rank in (bound - 1, bound)}
    notes = {rank: fit(config, corpus, base).state.notes for rank, config in configs.items()}
    assert notes[bound - 1] == []
    assert f"rank {bound} is full at each adapted module" in notes[bound][0]
