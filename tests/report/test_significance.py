"""Laws of the tests over documents and of Holm's correction."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bora_sweep.report import DocumentScores, task_contrasts
from bora_sweep.report.stats.significance import (
    FLIPS,
    GAINS,
    LOSES,
    UNKNOWN,
    can_have_verdict,
    documents_for_verdict,
    holm,
    sign_flip_limit,
    sign_flip_p,
    task_p_values,
    verdict,
)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_signs_are_flipped_in_every_way(differences: list[float]):
    nats_n = np.round(differences, 3)
    sums = [
        abs(sum(s * x for s, x in zip(signs, nats_n, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(nats_n))
    ]
    expected = np.mean([value >= abs(nats_n.sum()) - 1e-9 for value in sums])
    assert sign_flip_p(nats_n) == pytest.approx(expected)
    assert sign_flip_p(-nats_n) == sign_flip_p(nats_n)


@pytest.mark.parametrize("n", [1, 3, 5, 10, 12])
def test_few_documents_are_never_certain(n: int):
    assert sign_flip_p(np.full(n, 7.0)) == sign_flip_limit(n) == 2.0 ** (1 - n)


def test_drawn_signs_agree_with_all_of_them_and_far_tails_are_bounded():
    rng = np.random.default_rng(0)
    nats_n = rng.normal(0.5, 1, 13)
    signs = np.array(list(itertools.product((1, -1), repeat=13)))
    exact = (np.abs(signs @ nats_n) >= abs(nats_n.sum()) - 1e-9).mean()
    assert sign_flip_p(nats_n) == pytest.approx(exact, abs=4 * (exact / FLIPS) ** 0.5)
    assert sign_flip_p(rng.normal(0, 1, 2_000)) > 1e-3  # more documents than signs that are held at once
    far = sign_flip_p(rng.normal(1, 0.1, 100))
    assert sign_flip_limit(100) <= far < 1e-15
    assert sign_flip_p(np.zeros(30)) == 1


def test_under_no_difference_p_values_are_uniform_or_larger():
    """Whatever the spread of each document: exact, by symmetry."""
    rng = np.random.default_rng(1)
    p = np.array([sign_flip_p(rng.standard_cauchy(9) * np.exp(rng.normal(size=9))) for _ in range(2_000)])
    for alpha in (0.01, 0.05, 0.2):
        assert (p <= alpha).mean() <= alpha + 3 * (alpha / 2_000) ** 0.5


def test_holm():
    """The example of four: 0.005 and 0.011 stand, 0.02 and 0.04 then too."""
    assert holm(np.array([0.02, 0.005, 0.04, 0.011])) == pytest.approx([0.04, 0.02, 0.04, 0.033])
    assert holm(np.array([0.04, 0.03])) == pytest.approx([0.06, 0.06])
    assert holm(np.ones(3)).tolist() == [1, 1, 1]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_holm_lies_between_no_correction_and_bonferronis(p: list[float]):
    adjusted = holm(np.array(p))
    assert (adjusted >= np.array(p)).all()
    assert (adjusted <= np.minimum(1, len(p) * np.array(p)) + 1e-12).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


def test_verdicts_in_words():
    assert [verdict(-1.0, 0.01), verdict(1.0, 0.01), verdict(-1.0, 0.05)] == [GAINS, LOSES, UNKNOWN]
    assert verdict(-1.0, math.nan) == UNKNOWN


def test_a_shift_alike_in_all_documents_is_not_taken_as_certain_from_three_of_them():
    """Its interval has no width, so the t test alone would be sure."""
    counts = {"few": 3, "many": 30}
    task_N = np.repeat(list(counts), list(counts.values())).astype(object)
    nats_NM = np.column_stack([np.full(33, 60.0), np.full(33, 61.0)])
    documents = DocumentScores(task_N, np.full(33, 20.0), nats_NM)
    differences = task_contrasts(documents, [(0, 1)])
    assert (differences.p_value < 1e-9).all()
    few, many = task_p_values(documents, differences, 0, 0, 1)
    assert few == 0.25
    assert many < 1e-5


@given(st.lists(st.integers(1, 25), min_size=1, max_size=12), st.data())
@settings(max_examples=50, deadline=None)
def test_no_verdict_where_none_is_possible_and_one_at_the_smallest_p(documents: list[int], data: st.DataObject):
    smallest_D = np.array([sign_flip_limit(n) for n in documents])
    p_D = np.array([data.draw(st.floats(p, 1)) for p in smallest_D])
    can_D = can_have_verdict(smallest_D)
    assert not ((holm(p_D) < 0.05) & ~can_D).any()
    assert ((holm(smallest_D) < 0.05) == can_D).all()
    assert can_D.any() == (max(documents) >= documents_for_verdict(len(documents)))


def test_the_smallest_p_value_is_reached_where_all_documents_agree():
    for n in (12, 16, 20, 21, 30, 60):
        assert 1 - 1e-9 <= sign_flip_p(np.full(n, 7.0)) / sign_flip_limit(n) < 3
    assert [documents_for_verdict(tasks) for tasks in (1, 5, 300, 600)] == [6, 8, 14, 21]
