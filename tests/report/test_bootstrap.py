"""Laws of the paired bootstrap and of the noise of seeds."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bora_sweep.errors import InputError
from bora_sweep.report import Documents, align_documents, paired_bootstrap
from bora_sweep.report.stats.bootstrap import task_contrasts
from bora_sweep.report.stats.seed_noise import seed_noise


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


def of_one_task(nats_n: np.ndarray, tokens_n: np.ndarray) -> Documents:
    """Two settings: the documents' nats, and 0."""
    return Documents(np.full(len(nats_n), "a", dtype=object), tokens_n, np.column_stack([nats_n, 0 * nats_n]))


@given(st.integers(0, 10**6), st.integers(2, 12))
@settings(max_examples=20, deadline=None)
def test_few_documents_do_not_vary_too_little(seed: int, n: int):
    """Of equal lengths: the standard error is that of a mean, s / sqrt(n) with n - 1 below s."""
    nats_n = 20 * np.random.default_rng(seed).normal(size=n)
    contrast = paired_bootstrap(of_one_task(nats_n, np.full(n, 20.0)), 20_000).contrast(0, 1)
    assert contrast.standard_error == pytest.approx(nats_n.std(ddof=1) / 20 / n**0.5, rel=0.03)
    assert contrast.degrees == pytest.approx(n - 1)


def test_a_long_document_among_short_ones_counts_as_less_than_its_number():
    nats_n, tokens_n = np.array([1.0, 2.0, 3.0, 30.0]), np.array([10.0, 10.0, 10.0, 100.0])
    contrast = task_contrasts(of_one_task(nats_n, tokens_n), [(0, 1)])
    assert contrast.degrees[0, 0] == pytest.approx(max(1.0, 130**2 / (3 * 10**2 + 100**2) - 1))


@pytest.mark.parametrize("n", [3, 6, 20])
def test_intervals_of_a_single_task_hold_the_truth_however_few_its_documents(n: int):
    rng, draws, truth = np.random.default_rng(n), 400, 0.02
    tokens_SN = np.exp(rng.normal(4, 0.5, (draws, n))).round()
    nats_SN = tokens_SN * (truth + rng.normal(0, 0.1, (draws, n)))
    task_N = np.repeat([f"{s:03d}" for s in range(draws)], n).astype(object)
    documents = Documents(task_N, tokens_SN.ravel(), np.column_stack([nats_SN.ravel(), 0 * nats_SN.ravel()]))
    low_D, high_D = (end[:, 0] for end in task_contrasts(documents, [(0, 1)], replicates=300).ends)
    assert 0.925 <= ((low_D <= truth) & (truth <= high_D)).mean() <= 0.99


def test_a_task_alone_is_as_a_run_of_that_task():
    documents = draw(3)
    found = task_contrasts(documents, [(0, None), (0, 1)], replicates=20_000)
    for d, task in enumerate(documents.tasks):
        bootstrap = paired_bootstrap(documents.of_task(task), replicates=20_000)
        for c, pair in enumerate([(0, None), (0, 1)]):
            alone = bootstrap.contrast(*pair)
            assert found.nats_per_token[d, c] == pytest.approx(alone.nats_per_token)
            assert found.standard_error[d, c] == pytest.approx(alone.standard_error, rel=0.03)
            assert found.degrees[d, c] == pytest.approx(alone.degrees)


def test_a_task_with_one_document_has_no_interval_and_takes_none_away():
    documents = draw(0, sizes=(1, 1, 9, 1))
    found = task_contrasts(documents, [(0, 1)])
    assert np.isnan(found.standard_error[:, 0]).tolist() == [True, True, False, True]
    assert (found.p_value[[0, 1, 3], 0] == 1).all()
    overall, alone = (paired_bootstrap(part).contrast(0, 1) for part in (documents, documents.of_task("t2")))
    share = documents.of_task("t2").tokens_N.sum() / documents.tokens_N.sum()
    assert overall.standard_error > 1.01 * share * alone.standard_error
    assert np.isnan(paired_bootstrap(documents.of_task("t0")).contrast(0, 1).standard_error)


def test_the_p_value_is_below_5_percent_where_the_interval_excludes_0():
    documents = draw(1, sizes=(5,) * 200)
    found = task_contrasts(documents, [(0, 1)])
    low_D, high_D = (end[:, 0] for end in found.ends)
    assert ((found.p_value[:, 0] < 0.05) == ((low_D > 0) | (high_D < 0))).all()
    assert (found.p_value < 0.05).any()


def of_seeds(seed: int, effect: float, seeds: int = 4, fits: int = 30) -> Documents:
    """Settings with `seeds` fits each, of variance 0.0004; `effect` is the deviation that fits of one seed share."""
    rng = np.random.default_rng(seed)
    tokens_N = np.full(40, 25.0)
    own_MS = 0.02 * rng.normal(size=(fits, seeds)) + effect * rng.normal(size=seeds)
    per_token_NJ = 3 + 0.1 * rng.normal(size=(40, 1)) + own_MS.ravel()
    setting_J, seed_J = np.repeat(np.arange(fits), seeds), np.tile(np.arange(seeds), fits).astype(float)
    return Documents(np.full(40, "a", dtype=object), tokens_N, tokens_N[:, None] * per_token_NJ, setting_J, seed_J)


@pytest.mark.parametrize("effect", [0.0, 0.5])
def test_what_fits_of_one_seed_share_cancels_in_differences(effect: float):
    documents = of_seeds(0, effect)
    noise = seed_noise(documents, documents.nats_NJ.sum(axis=0) / 1_000)
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
    unlike = Documents(documents.task_N, documents.tokens_N, documents.nats_NJ, documents.setting_J, seed_J)
    noise = seed_noise(unlike, unlike.nats_NJ.sum(axis=0) / 1_000)
    assert noise is not None
    assert not noise.same_seeds
    assert noise.of_difference(0, 1)[0] == pytest.approx(noise.variance * 2 / 4)


def test_one_seed_tells_nothing_of_seeds_and_zero_shot_has_none():
    documents = of_seeds(0, 0.0, seeds=1)
    assert paired_bootstrap(documents).seeds is None
    several = of_seeds(0, 0.0, seeds=3, fits=2)
    assert several.setting_J is not None
    assert several.seed_J is not None
    without = Documents(
        task_N=several.task_N,
        tokens_N=several.tokens_N,
        nats_NJ=np.column_stack([several.nats_NJ, several.nats_NJ[:, 0]]),
        setting_J=np.r_[several.setting_J, 2],
        seed_J=np.r_[several.seed_J, math.nan],
    )
    noise = paired_bootstrap(without).seeds
    assert noise is not None
    assert noise.num_fits_M.tolist() == [3, 3, 0]
    assert noise.of_level(2)[0] == 0
    assert noise.of_difference(0, 2)[0] == pytest.approx(noise.variance / 3)


def test_intervals_with_seeds_hold_what_fits_score_on_average():
    hits = []
    for seed in range(200):
        bootstrap = paired_bootstrap(of_seeds(seed, 0.05, seeds=2, fits=5), 200, seed)
        low, high = bootstrap.contrast(0, 1).ends
        hits.append(low <= 0 <= high)
        assert bootstrap.with_seeds().std(axis=0).mean() > 1.1 * bootstrap.contrast(0, 1).standard_error / 2
    assert 0.9 <= np.mean(hits) <= 0.99
