"""Laws of the paired bootstrap."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bora_sweep.report import DocumentScores, paired_bootstrap
from bora_sweep.report.stats.bootstrap import task_contrasts


def draw(seed: int, sizes: tuple[int, ...] = (7, 30, 12), trials: int = 2) -> DocumentScores:
    rng = np.random.default_rng(seed)
    n = sum(sizes)
    tokens_N = rng.integers(5, 60, n).astype(float)
    nats_NM = tokens_N[:, None] * (3 + rng.normal(0, 0.5, (n, 1)) + rng.normal(0, 0.1, (n, trials)))
    return DocumentScores(np.repeat([f"t{d}" for d in range(len(sizes))], sizes).astype(object), tokens_N, nats_NM)


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_a_trial_does_not_differ_from_itself(seed: int):
    documents = draw(seed)
    twin = DocumentScores(documents.task_N, documents.weight_N, documents.value_NM[:, [0, 0]])
    interval = paired_bootstrap(twin, replicates=50).difference(0, 1)
    assert (interval.estimate, interval.low, interval.high) == (0, 0, 0)
    assert not interval.excludes_zero


@given(st.integers(0, 10**6), st.floats(-1, 1))
@settings(max_examples=20, deadline=None)
def test_a_constant_shift_per_token_is_found_exactly(seed: int, shift: float):
    documents = draw(seed, trials=1)
    nats_NM = np.column_stack([documents.value_NM, documents.value_NM[:, 0] + shift * documents.weight_N])
    pair = DocumentScores(documents.task_N, documents.weight_N, nats_NM)
    interval = paired_bootstrap(pair, 50).difference(1, 0)
    for value in (interval.estimate, interval.low, interval.high):
        assert value == pytest.approx(math.exp(shift) - 1, abs=1e-12)


@given(st.integers(0, 10**6), st.floats(0.5, 2))
@settings(max_examples=20, deadline=None)
def test_a_constant_ratio_of_nats_moves_the_estimate_by_the_ratio(seed: int, ratio: float):
    documents = draw(seed, trials=1)
    nats_NM = documents.value_NM * np.array([1, ratio])
    pair = DocumentScores(documents.task_N, documents.weight_N, nats_NM)
    interval = paired_bootstrap(pair, 50).difference(1, 0)
    nats_per_token = documents.value_NM.sum() / documents.weight_N.sum()
    assert interval.estimate == pytest.approx(math.exp((ratio - 1) * nats_per_token) - 1)
    assert interval.low <= interval.estimate + 1e-12
    assert interval.high >= interval.estimate - 1e-12


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_swapping_the_two_inverts_the_ratio(seed: int):
    bootstrap = paired_bootstrap(draw(seed), replicates=100)
    one, other = bootstrap.difference(0, 1), bootstrap.difference(1, 0)
    for a, b in ((one.estimate, other.estimate), (one.low, other.high), (one.high, other.low)):
        assert (1 + a) * (1 + b) == pytest.approx(1, abs=1e-12)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    documents = draw(0)
    first, again, other = (paired_bootstrap(documents, 100, seed).difference(0, 1) for seed in (3, 3, 4))
    assert first == again
    assert first.estimate == other.estimate
    assert first != other


def test_pairing_narrows_the_interval():
    """DocumentScores differ far more than trials do: unpaired draws would add both variances."""
    documents = draw(0, sizes=(200, 100))
    bootstrap = paired_bootstrap(documents)
    paired, alone = bootstrap.difference(0, 1), bootstrap.level(0)
    assert (paired.high - paired.low) < 0.5 * (alone.high - alone.low) / alone.estimate


def test_tasks_are_kept_and_only_documents_drawn():
    """DocumentScores alike within tasks: whatever is drawn, each task keeps its weight, so nothing varies."""
    tokens_N = np.repeat([10.0, 30.0], [8, 5])
    nats_NM = tokens_N[:, None] * np.repeat([[2.0], [5.0]], [8, 5], axis=0)
    documents = DocumentScores(np.repeat(["a", "b"], [8, 5]).astype(object), tokens_N, nats_NM)
    interval = paired_bootstrap(documents, 50).level(0)
    assert interval.low == pytest.approx(interval.high) == pytest.approx(math.exp(nats_NM.sum() / tokens_N.sum()))


def test_95_of_100_intervals_hold_the_truth():
    rng = np.random.default_rng(1)
    tokens_N, task_N = np.full(160, 20.0), np.repeat(["a", "b", "c", "d"], 40).astype(object)
    hits, draws, truth = 0, 300, math.exp(0.02) - 1
    for seed in range(draws):
        base_N, difference_N = 3 + rng.normal(0, 0.5, 160), rng.normal(0.02, 0.1, 160)
        nats_NM = tokens_N[:, None] * np.column_stack([base_N + difference_N, base_N])
        interval = paired_bootstrap(DocumentScores(task_N, tokens_N, nats_NM), 300, seed).difference(0, 1)
        hits += interval.low <= truth <= interval.high
    assert 0.90 <= hits / draws <= 0.985


def of_one_task(nats_n: np.ndarray, tokens_n: np.ndarray) -> DocumentScores:
    """Two settings: the documents' nats, and 0."""
    return DocumentScores(np.full(len(nats_n), "a", dtype=object), tokens_n, np.column_stack([nats_n, 0 * nats_n]))


@given(st.integers(0, 10**6), st.integers(2, 12))
@settings(max_examples=20, deadline=None)
def test_few_documents_do_not_vary_too_little(seed: int, n: int):
    """Of equal lengths: the standard error is that of a mean, s / sqrt(n) with n - 1 below s."""
    nats_n = 20 * np.random.default_rng(seed).normal(size=n)
    contrast = paired_bootstrap(of_one_task(nats_n, np.full(n, 20.0)), 20_000).contrast(0, 1)
    assert contrast.standard_error == pytest.approx(nats_n.std(ddof=1) / 20 / n**0.5, rel=0.03)
    assert contrast.degrees_of_freedom == pytest.approx(n - 1)


def test_a_long_document_among_short_ones_counts_as_less_than_its_number():
    nats_n, tokens_n = np.array([1.0, 2.0, 3.0, 30.0]), np.array([10.0, 10.0, 10.0, 100.0])
    contrast = task_contrasts(of_one_task(nats_n, tokens_n), [(0, 1)])
    assert contrast.degrees_of_freedom[0, 0] == pytest.approx(max(1.0, 130**2 / (3 * 10**2 + 100**2) - 1))


@pytest.mark.parametrize("n", [3, 6, 20])
def test_intervals_of_a_single_task_hold_the_truth_however_few_its_documents(n: int):
    rng, draws, truth = np.random.default_rng(n), 400, 0.02
    tokens_SN = np.exp(rng.normal(4, 0.5, (draws, n))).round()
    nats_SN = tokens_SN * (truth + rng.normal(0, 0.1, (draws, n)))
    task_N = np.repeat([f"{s:03d}" for s in range(draws)], n).astype(object)
    documents = DocumentScores(task_N, tokens_SN.ravel(), np.column_stack([nats_SN.ravel(), 0 * nats_SN.ravel()]))
    low_D, high_D = (end[:, 0] for end in task_contrasts(documents, [(0, 1)], replicates=300).bounds)
    assert 0.925 <= ((low_D <= truth) & (truth <= high_D)).mean() <= 0.99


def test_a_task_alone_is_as_a_run_of_that_task():
    documents = draw(3)
    found = task_contrasts(documents, [(0, None), (0, 1)], replicates=20_000)
    for d, task in enumerate(documents.tasks):
        bootstrap = paired_bootstrap(documents.of_task(task), replicates=20_000)
        for c, pair in enumerate([(0, None), (0, 1)]):
            alone = bootstrap.contrast(*pair)
            assert found.estimate[d, c] == pytest.approx(alone.estimate)
            assert found.standard_error[d, c] == pytest.approx(alone.standard_error, rel=0.03)
            assert found.degrees_of_freedom[d, c] == pytest.approx(alone.degrees_of_freedom)


def test_a_task_with_one_document_has_no_interval_and_takes_none_away():
    documents = draw(0, sizes=(1, 1, 9, 1))
    found = task_contrasts(documents, [(0, 1)])
    assert np.isnan(found.standard_error[:, 0]).tolist() == [True, True, False, True]
    assert (found.p_value[[0, 1, 3], 0] == 1).all()
    overall, alone = (paired_bootstrap(part).contrast(0, 1) for part in (documents, documents.of_task("t2")))
    share = documents.of_task("t2").weight_N.sum() / documents.weight_N.sum()
    assert overall.standard_error > 1.01 * share * alone.standard_error
    assert np.isnan(paired_bootstrap(documents.of_task("t0")).contrast(0, 1).standard_error)


def test_the_p_value_is_below_5_percent_where_the_interval_excludes_0():
    documents = draw(1, sizes=(5,) * 200)
    found = task_contrasts(documents, [(0, 1)])
    low_D, high_D = (end[:, 0] for end in found.bounds)
    assert ((found.p_value[:, 0] < 0.05) == ((low_D > 0) | (high_D < 0))).all()
    assert (found.p_value < 0.05).any()
