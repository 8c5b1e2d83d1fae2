"""Laws of the paired bootstrap, and of what is known of tau."""

import math
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bora_sweep.errors import InputError
from bora_sweep.report import Documents, align_documents, paired_bootstrap
from bora_sweep.report.statistics import best_tau, lowest_tau, tau_posterior

UNEVEN = np.array([1.0, 5.0, 40.0, 60.0, 1e3, 2e4])


def draw(seed: int, sizes: tuple[int, ...] = (7, 30, 12), trials: int = 2) -> Documents:
    rng = np.random.default_rng(seed)
    n = sum(sizes)
    tokens_N = rng.integers(5, 60, n).astype(float)
    nats_NM = tokens_N[:, None] * (3 + rng.normal(0, 0.5, (n, 1)) + rng.normal(0, 0.1, (n, trials)))
    return Documents(np.repeat([f"t{d}" for d in range(len(sizes))], sizes).astype(object), tokens_N, nats_NM)


def scores(trial: str = "a", setting: int = 0, shift: float = 0.0) -> pd.DataFrame:
    """`document_scores` of one trial: 3 tasks of 4 test documents."""
    rows = [
        {"task": f"t{d}", "document_id": str(i), "num_tokens": 10 + i, "nll_nats": (10 + i) * (3 + 0.1 * d * i + shift)}
        for d in range(3)
        for i in range(4)
    ]
    return pd.DataFrame(rows).assign(split="test", run="r", trial_id=trial, setting=setting, floor_nll_nats=math.nan)


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_a_trial_does_not_differ_from_itself(seed: int):
    documents = draw(seed)
    twin = Documents(documents.task_N, documents.tokens_N, documents.nats_NM[:, [0, 0]])
    interval = paired_bootstrap(twin, replicates=50).relative_difference(0, 1)
    assert (interval.estimate, interval.low, interval.high) == (0, 0, 0)
    assert not interval.excludes_zero


@given(st.integers(0, 10**6), st.floats(-1, 1))
@settings(max_examples=20, deadline=None)
def test_a_constant_shift_per_token_is_found_exactly(seed: int, shift: float):
    documents = draw(seed, trials=1)
    nats_NM = np.column_stack([documents.nats_NM, documents.nats_NM[:, 0] + shift * documents.tokens_N])
    interval = paired_bootstrap(Documents(documents.task_N, documents.tokens_N, nats_NM), 50).relative_difference(1, 0)
    for value in (interval.estimate, interval.low, interval.high):
        assert value == pytest.approx(math.exp(shift) - 1, abs=1e-12)


@given(st.integers(0, 10**6), st.floats(0.5, 2))
@settings(max_examples=20, deadline=None)
def test_a_constant_ratio_of_nats_moves_the_estimate_by_the_ratio(seed: int, ratio: float):
    documents = draw(seed, trials=1)
    nats_NM = documents.nats_NM * np.array([1, ratio])
    interval = paired_bootstrap(Documents(documents.task_N, documents.tokens_N, nats_NM), 50).relative_difference(1, 0)
    nats_per_token = documents.nats_NM.sum() / documents.tokens_N.sum()
    assert interval.estimate == pytest.approx(math.exp((ratio - 1) * nats_per_token) - 1)
    assert interval.low <= interval.estimate + 1e-12
    assert interval.high >= interval.estimate - 1e-12


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_swapping_the_two_inverts_the_ratio(seed: int):
    bootstrap = paired_bootstrap(draw(seed), replicates=100)
    one, other = bootstrap.relative_difference(0, 1), bootstrap.relative_difference(1, 0)
    for a, b in ((one.estimate, other.estimate), (one.low, other.high), (one.high, other.low)):
        assert (1 + a) * (1 + b) == pytest.approx(1, abs=1e-12)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    documents = draw(0)
    first, again, other = (paired_bootstrap(documents, 100, seed).relative_difference(0, 1) for seed in (3, 3, 4))
    assert first == again
    assert first.estimate == other.estimate
    assert first != other


def test_pairing_narrows_the_interval():
    """Documents differ far more than trials do: unpaired draws would add both variances."""
    documents = draw(0, sizes=(200, 100))
    bootstrap = paired_bootstrap(documents)
    paired, alone = bootstrap.relative_difference(0, 1), bootstrap.perplexity(0)
    assert (paired.high - paired.low) < 0.5 * (alone.high - alone.low) / alone.estimate


def test_tasks_are_kept_and_only_documents_drawn():
    """Documents alike within tasks: whatever is drawn, each task keeps its weight, so nothing varies."""
    tokens_N = np.repeat([10.0, 30.0], [8, 5])
    nats_NM = tokens_N[:, None] * np.repeat([[2.0], [5.0]], [8, 5], axis=0)
    documents = Documents(np.repeat(["a", "b"], [8, 5]).astype(object), tokens_N, nats_NM)
    interval = paired_bootstrap(documents, 50).perplexity(0)
    assert interval.low == pytest.approx(interval.high) == pytest.approx(math.exp(nats_NM.sum() / tokens_N.sum()))


def test_95_of_100_intervals_hold_the_truth():
    rng = np.random.default_rng(1)
    tokens_N, task_N = np.full(160, 20.0), np.repeat(["a", "b", "c", "d"], 40).astype(object)
    hits, draws, truth = 0, 300, math.exp(0.02) - 1
    for seed in range(draws):
        base_N, difference_N = 3 + rng.normal(0, 0.5, 160), rng.normal(0.02, 0.1, 160)
        nats_NM = tokens_N[:, None] * np.column_stack([base_N + difference_N, base_N])
        interval = paired_bootstrap(Documents(task_N, tokens_N, nats_NM), 300, seed).relative_difference(0, 1)
        hits += interval.low <= truth <= interval.high
    assert 0.90 <= hits / draws <= 0.985


def test_alignment_forgets_the_order_of_rows():
    both = pd.concat([scores("a", 0), scores("b", 1, shift=0.2)], ignore_index=True)
    straight = align_documents(both, [0, 1])
    mixed = align_documents(both.sample(frac=1, random_state=0), [0, 1])
    for name in ("task_N", "tokens_N", "nats_NM"):
        np.testing.assert_array_equal(getattr(straight, name), getattr(mixed, name))
    assert straight.of_task("t1").nats_NM.shape == (4, 2)
    assert (straight.of_task("t1").task_N == "t1").all()


def test_seeds_of_a_setting_are_pooled_document_by_document():
    rows = pd.concat([scores("a", 0), scores("b", 0, shift=0.2), scores("c", 1, shift=0.1)])
    documents = align_documents(rows, [1, 0])
    np.testing.assert_allclose(documents.nats_NM[:, 0], documents.nats_NM[:, 1])


def test_documents_that_do_not_match_are_named():
    with pytest.raises(InputError, match=r"r, trial b: document '2' of task 't1' \(test\) has no score"):
        align_documents(pd.concat([scores("a"), scores("b", 1).query("task != 't1' or document_id != '2'")]), [0, 1])
    with pytest.raises(InputError, match=r"r, trial a: document '0' of task 't0' \(test\) is scored twice"):
        align_documents(pd.concat([scores("a"), scores("a").head(1)]), [0])
    longer = scores("b", 1).assign(num_tokens=lambda rows: rows["num_tokens"] + (rows["document_id"] == "3"))
    with pytest.raises(InputError, match=r"document '3' of task 't0' \(test\) has 14 tokens, 13 in trial a"):
        align_documents(pd.concat([scores("a"), longer]), [0, 1])


def test_a_large_run_takes_seconds():
    documents = draw(0, sizes=(1_000,) * 20, trials=12)
    started = time.perf_counter()
    paired_bootstrap(documents)
    assert time.perf_counter() - started < 20


@pytest.mark.parametrize(("middle", "deviation"), [(5.0, 0.3), (6.5, 0.1), (3.0, 0.5)])
def test_the_posterior_of_a_parabola_is_gaussian(middle: float, deviation: float):
    log_taus_V = np.linspace(0, 10, 101)
    interval = tau_posterior(np.exp(log_taus_V), 7_000 + 0.5 * ((log_taus_V - middle) / deviation) ** 2)
    assert math.log(interval.estimate) == pytest.approx(middle, abs=0.01)
    assert math.log(interval.low) == pytest.approx(middle - 1.96 * deviation, abs=0.02 * deviation)
    assert math.log(interval.high) == pytest.approx(middle + 1.96 * deviation, abs=0.02 * deviation)


def test_the_posterior_without_information_is_the_prior():
    interval = tau_posterior(np.array([1.0, 3.0, 1e4]), np.full(3, 123.0))
    log_ends = np.log([interval.low, interval.estimate, interval.high]) / math.log(1e4)
    assert log_ends == pytest.approx([0.025, 0.5, 0.975])


def test_the_posterior_of_a_slope_is_exponential():
    """p ~ exp(-a log tau), far from the upper end: mean 1/a, quantiles -log(1 - q) / a."""
    taus_V = np.exp(np.linspace(0, 20, 9))
    interval = tau_posterior(taus_V, 4 * np.log(taus_V))
    told = np.log([interval.low, interval.estimate, interval.high])
    assert told == pytest.approx([-math.log(0.975) / 4, 1 / 4, -math.log(0.025) / 4], abs=2e-4)


@given(st.floats(math.log(5.0), math.log(1e3)), st.floats(0.1, 1e4), st.floats(-1e3, 1e6))
@settings(max_examples=50, deadline=None)
def test_the_lowest_point_of_a_parabola_is_its_vertex(middle: float, scale: float, height: float):
    nll_V = height + scale * (np.log(UNEVEN) - middle) ** 2
    assert math.log(lowest_tau(UNEVEN, nll_V[None])[0]) == pytest.approx(middle, abs=1e-3)


@given(st.lists(st.floats(0, 1e3), min_size=6, max_size=6))
@settings(max_examples=50, deadline=None)
def test_the_lowest_point_lies_between_the_neighbours_of_the_lowest_fit(nll_V: list[float]):
    v = int(np.argmin(nll_V))
    (tau,) = lowest_tau(UNEVEN, np.array([nll_V]))
    assert UNEVEN[max(v - 1, 0)] <= tau <= UNEVEN[min(v + 1, 5)]


@pytest.mark.parametrize(("v", "tau"), [(0, 0.0), (1, 10.0), (3, 1e3), (4, math.inf)])
def test_beside_the_ends_the_lowest_point_is_the_fit_itself(v: int, tau: float):
    nll_V = np.abs(np.arange(5.0) - v)
    assert lowest_tau(np.array([0, 10, 100, 1e3, math.inf]), nll_V[None])[0] == tau


def test_95_of_100_intervals_hold_the_best_tau():
    """Each document has a parabola of its own, as (log tau - its middle)^2: their sum is lowest at the mean middle."""
    rng = np.random.default_rng(2)
    taus_V, tokens_N, task_N = (
        np.array([0, 1, 30, 200, 1e3, 1e5, math.inf]),
        np.full(80, 20.0),
        np.repeat(["a", "b"], 40),
    )
    x_V = np.clip(np.log(np.maximum(taus_V, 1e-9)), -9, 20)
    hits, draws = 0, 200
    for seed in range(draws):
        middle_N = rng.normal(math.log(200), 4, 80)
        documents = Documents(task_N.astype(object), tokens_N, (x_V - middle_N[:, None]) ** 2)
        interval = best_tau(taus_V, paired_bootstrap(documents, 300, seed))
        assert interval.low <= interval.estimate <= interval.high
        hits += interval.low <= 200 <= interval.high
    assert 0.89 <= hits / draws <= 0.985


def test_an_interval_of_the_best_tau_may_reach_an_end():
    nats_NM = 60 + np.random.default_rng(0).normal(0, 1, (40, 4))
    documents = Documents(np.full(40, "a", dtype=object), np.full(40, 20.0), nats_NM)
    interval = best_tau(np.array([0, 1.0, 10.0, math.inf]), paired_bootstrap(documents))
    assert (interval.low, interval.high) == (0, math.inf)
