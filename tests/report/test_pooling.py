"""The pooling factor against the conjugate Gaussian model, where it is known, and against the paper's formula."""

import math

import numpy as np
import pytest

from bora_sweep.report.stats.pooling import pooling_factors

SIGMA, TAU, MEAN = 1.7, 4.0, 0.3


def gaussian_nats(theta_3: np.ndarray, observed: list[np.ndarray]) -> np.ndarray:
    """nats_n3 of documents of some observations each under N(theta, SIGMA^2)."""
    constant = 0.5 * math.log(2 * math.pi * SIGMA**2)
    return np.array([
        [float((((y - theta) / SIGMA) ** 2 / 2 + constant).sum()) for theta in theta_3] for y in observed
    ])  # fmt: skip


def conjugate(rng: np.random.Generator, size_D: np.ndarray, held_out: int = 5):
    """Tasks theta_d ~ N(MEAN, 1 / TAU) with size_D observations each, and documents of other observations.

    Returns:
        nats_N3, tokens_N, rows of each task, the law's factors, and the task's deviations: posterior mean and variance.
    """
    theta_D = rng.normal(MEAN, TAU**-0.5, len(size_D))
    own_D = rng.normal(theta_D, SIGMA / np.sqrt(size_D))
    factor_D = TAU / (TAU + size_D / SIGMA**2)
    parts, tokens = [], []
    for theta, own, factor in zip(theta_D, own_D, factor_D, strict=True):
        observed = [rng.normal(theta, SIGMA, rng.integers(1, 6)) for _ in range(held_out)]
        parts.append(gaussian_nats(np.array([own, factor * MEAN + (1 - factor) * own, MEAN]), observed))
        tokens += [len(y) for y in observed]
    rows = np.split(np.arange(len(tokens)), len(size_D))
    posterior = (1 - factor_D) * (own_D - MEAN), 1 / (TAU + size_D / SIGMA**2)
    return np.concatenate(parts), np.array(tokens, dtype=float), rows, factor_D, posterior


def test_on_the_conjugate_model_each_tasks_factor_is_the_priors_share_of_the_precision():
    rng = np.random.default_rng(0)
    nats_N3, tokens_N, rows, factor_D, _ = conjugate(rng, rng.integers(1, 60, 40))
    _, tasks = pooling_factors(nats_N3, tokens_N, rows)
    np.testing.assert_allclose([task.estimate for task in tasks], factor_D, rtol=0, atol=1e-9)
    assert all(task.high - task.low < 1e-9 for task in tasks)


@pytest.mark.parametrize("largest", [2, 60])
def test_on_the_conjugate_model_the_overall_factor_is_that_of_gelman_and_pardoe(largest):
    """Their formula from draws of the posterior: 1 - variance over tasks of the means / mean of the variances."""
    rng = np.random.default_rng(1)
    nats_N3, tokens_N, rows, factor_D, (mean_D, variance_D) = conjugate(rng, rng.integers(1, largest, 6_000), 8)
    draw_SD = mean_D + np.sqrt(variance_D) * rng.standard_normal((200, len(mean_D)))
    theirs = 1 - draw_SD.mean(axis=0).var() / draw_SD.var(axis=1).mean()
    overall, _ = pooling_factors(nats_N3, tokens_N, rows)
    assert theirs == pytest.approx(factor_D.mean(), abs=0.02)
    assert overall.estimate == pytest.approx(theirs, abs=0.02)


def test_the_ends_are_0_and_1_and_what_all_tokens_share_does_not_count():
    rng = np.random.default_rng(2)
    nats_N3, tokens_N, rows, _, _ = conjugate(rng, np.array([3, 30, 300]))
    for column, factor in ((0, 0.0), (2, 1.0)):
        at_end = np.column_stack([nats_N3[:, 0], nats_N3[:, column], nats_N3[:, 2]])
        _, tasks = pooling_factors(at_end, tokens_N, rows)
        assert [task.estimate for task in tasks] == pytest.approx([factor] * 3, abs=1e-9)
    worse = nats_N3 + tokens_N[:, None] * np.array([0.4, 0.0, -0.2])
    before, after = (pooling_factors(nats, tokens_N, rows) for nats in (nats_N3, worse))
    assert [task.estimate for task in after[1]] == pytest.approx([task.estimate for task in before[1]], abs=1e-9)
    assert after[0].estimate == pytest.approx(before[0].estimate, abs=1e-9)


def noisy(rng: np.random.Generator, share: float, tasks: int, documents: int):
    """Documents on which the pooled deviation is `share` of the unpooled one, and noise of its own."""
    own_N = rng.standard_normal(tasks * documents)
    pooled_N = share * own_N + 0.4 * rng.standard_normal(len(own_N)) * np.abs(1 + 0.5 * own_N)
    tokens_N = np.full(len(own_N), 20.0)
    nats_N3 = np.column_stack([own_N, pooled_N, np.zeros(len(own_N))]) + 30
    return nats_N3, tokens_N, np.split(np.arange(len(own_N)), tasks)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng, share = np.random.default_rng(3), 0.6
    overall, tasks = zip(*(pooling_factors(*noisy(rng, share, 8, 40)) for _ in range(250)), strict=True)
    of_tasks = [interval for found in tasks for interval in found]
    for intervals in (overall, of_tasks):
        held = np.mean([interval.low <= 1 - share <= interval.high for interval in intervals])
        assert 0.9 <= held <= 0.98


def test_too_few_documents_or_none_that_differ_have_no_factor():
    rng = np.random.default_rng(4)
    nats_N3, tokens_N, rows, _, _ = conjugate(rng, np.array([3, 30, 300]))
    nats_N3[rows[1]] = tokens_N[rows[1], None] * np.array([1.0, 2.0, 3.0])
    overall, tasks = pooling_factors(nats_N3, tokens_N, [rows[0][:2], rows[1], rows[2]])
    assert [math.isnan(task.estimate) for task in tasks] == [True, True, False]
    assert overall.estimate == pytest.approx(tasks[2].estimate)
    assert overall.high - overall.low < 1e-9
    nothing, _ = pooling_factors(nats_N3, tokens_N, [rows[0][:2]])
    assert math.isnan(nothing.estimate)


def test_a_task_whose_factor_is_hardly_known_does_not_decide_the_overall_one():
    rng = np.random.default_rng(5)
    nats_N3, tokens_N, rows = noisy(rng, 0.6, 9, 40)
    nats_N3[rows[0], 0] = 30 + 1e-3 * rng.standard_normal(40)  # the ends say nearly the same of its documents
    overall, tasks = pooling_factors(nats_N3, tokens_N, rows)
    assert abs(tasks[0].estimate) > 10
    assert overall.estimate == pytest.approx(0.4, abs=0.1)


@pytest.mark.parametrize("tau", [1e-6, 1e6])
def test_towards_the_ends_of_tau_the_overall_factor_stays_known(tau):
    rng = np.random.default_rng(6)
    own_N = rng.standard_normal(240)
    pooled_N = own_N / (1 + tau) + 0.02 * rng.standard_normal(240)
    nats_N3 = np.column_stack([own_N, pooled_N, np.zeros(240)])
    overall, _ = pooling_factors(nats_N3, np.full(240, 20.0), np.split(np.arange(240), 12))
    assert overall.estimate == pytest.approx(tau / (1 + tau), abs=0.02)
