"""Laws of the variance over seeds."""

import math

import numpy as np
import pytest

from bora_sweep.report import DocumentScores, paired_bootstrap
from bora_sweep.report.stats.seed_noise import estimate_seed_noise


def of_seeds(seed: int, effect: float, seeds: int = 4, fits: int = 30) -> DocumentScores:
    """Settings with `seeds` fits each, of variance 0.0004; `effect` is the deviation that fits of one seed share."""
    rng = np.random.default_rng(seed)
    tokens_N = np.full(40, 25.0)
    own_MS = 0.02 * rng.normal(size=(fits, seeds)) + effect * rng.normal(size=seeds)
    per_token_NJ = 3 + 0.1 * rng.normal(size=(40, 1)) + own_MS.ravel()
    setting_J, seed_J = np.repeat(np.arange(fits), seeds), np.tile(np.arange(seeds), fits).astype(float)
    return DocumentScores(np.full(40, "a", dtype=object), tokens_N, tokens_N[:, None] * per_token_NJ, setting_J, seed_J)


@pytest.mark.parametrize("effect", [0.0, 0.5])
def test_what_fits_of_one_seed_share_cancels_in_differences(effect: float):
    documents = of_seeds(0, effect)
    noise = estimate_seed_noise(documents, documents.value_NJ.sum(axis=0) / 1_000)
    assert noise is not None
    assert noise.same_seeds
    assert (noise.degrees, noise.paired_degrees) == (30 * 3, 29 * 3)
    variance, _ = noise.of_difference(0, 1)
    assert variance == pytest.approx(0.0004 * 2 / 4, rel=0.5)
    assert (noise.variance > 0.02) == (effect > 0)
    assert noise.of_difference(2, 2)[0] == 0


def test_seeds_that_are_not_the_same_for_all_cancel_nothing():
    documents = of_seeds(0, 0.5)
    assert documents.setting_J is not None
    assert documents.seed_J is not None
    seed_J = documents.seed_J + 10 * documents.setting_J
    unlike = DocumentScores(documents.task_N, documents.weight_N, documents.value_NJ, documents.setting_J, seed_J)
    noise = estimate_seed_noise(unlike, unlike.value_NJ.sum(axis=0) / 1_000)
    assert noise is not None
    assert not noise.same_seeds
    assert noise.of_difference(0, 1)[0] == pytest.approx(noise.variance * 2 / 4)


def test_one_seed_tells_nothing_of_seeds_and_zero_shot_has_none():
    documents = of_seeds(0, 0.0, seeds=1)
    assert paired_bootstrap(documents).seed_noise is None
    several = of_seeds(0, 0.0, seeds=3, fits=2)
    assert several.setting_J is not None
    assert several.seed_J is not None
    without = DocumentScores(
        task_N=several.task_N,
        weight_N=several.weight_N,
        value_NJ=np.column_stack([several.value_NJ, several.value_NJ[:, 0]]),
        setting_J=np.r_[several.setting_J, 2],
        seed_J=np.r_[several.seed_J, math.nan],
    )
    noise = paired_bootstrap(without).seed_noise
    assert noise is not None
    assert noise.num_fits_M.tolist() == [3, 3, 0]
    assert noise.of_setting(2)[0] == 0
    assert noise.of_difference(0, 2)[0] == pytest.approx(noise.variance / 3)


def test_intervals_with_seeds_hold_what_fits_score_on_average():
    hits = []
    for seed in range(200):
        bootstrap = paired_bootstrap(of_seeds(seed, 0.05, seeds=2, fits=5), 200, seed)
        low, high = bootstrap.contrast(0, 1).bounds
        hits.append(low <= 0 <= high)
        assert bootstrap.with_seeds().std(axis=0).mean() > 1.1 * bootstrap.contrast(0, 1).standard_error / 2
    assert 0.9 <= np.mean(hits) <= 0.99
