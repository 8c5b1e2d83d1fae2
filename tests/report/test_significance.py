"""Laws of the tests over documents, of Holm's correction, and of lines through tasks."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bora_sweep.report import Documents, task_contrasts
from bora_sweep.report.stats.significance import (
    FLIPS,
    GAINS,
    LOSES,
    UNKNOWN,
    holm,
    sign_flip_p,
    smallest_p,
    task_p_values,
    verdict,
)
from bora_sweep.report.stats.trends import trend


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
    assert sign_flip_p(np.full(n, 7.0)) == smallest_p(n) == 2.0 ** (1 - n)


def test_drawn_signs_agree_with_all_of_them_and_far_tails_are_bounded():
    rng = np.random.default_rng(0)
    nats_n = rng.normal(0.5, 1, 13)
    signs = np.array(list(itertools.product((1, -1), repeat=13)))
    exact = (np.abs(signs @ nats_n) >= abs(nats_n.sum()) - 1e-9).mean()
    assert sign_flip_p(nats_n) == pytest.approx(exact, abs=4 * (exact / FLIPS) ** 0.5)
    assert sign_flip_p(rng.normal(0, 1, 2_000)) > 1e-3  # more documents than signs that are held at once
    far = sign_flip_p(rng.normal(1, 0.1, 100))
    assert smallest_p(100) <= far < 1e-15
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
    documents = Documents(task_N, np.full(33, 20.0), nats_NM)
    differences = task_contrasts(documents, [(0, 1)])
    assert (differences.p_value < 1e-9).all()
    few, many = task_p_values(documents, differences, 0, 0, 1)
    assert few == 0.25
    assert many < 1e-5


def test_a_line_is_found_exactly():
    sizes_D = np.array([4.0, 8.0, 16.0, 64.0, 64.0])
    line = trend("x", sizes_D, 3 - 0.5 * np.log2(sizes_D))
    assert line is not None
    assert (line.slope.estimate, line.slope.low, line.slope.high) == pytest.approx((-0.5, -0.5, -0.5))
    assert np.array(line.line(np.array([8.0, 32.0]))) == pytest.approx(np.array([[1.5, 0.5]] * 3))
    power = trend("x", sizes_D, 3 * sizes_D**0.5, is_log=True)
    assert power is not None
    assert power.slope.estimate == pytest.approx(2**0.5 - 1)
    assert power.line(np.array([25.0]))[0] == pytest.approx(15)


def test_a_line_needs_four_tasks_of_more_than_one_size_and_leaves_out_what_is_not_known():
    sizes_D = np.array([4.0, 8.0, 16.0, 32.0])
    assert trend("x", sizes_D[:3], sizes_D[:3]) is None
    assert trend("x", np.full(5, 9.0), np.arange(5.0)) is None
    assert trend("x", sizes_D, np.array([1.0, math.nan, 2.0, 3.0])) is None
    assert trend("x", sizes_D, np.array([1.0, 0.0, 2.0, 3.0]), is_log=True) is None
    assert trend("x", np.r_[0, sizes_D], np.arange(5.0)).num_tasks == 4  # type: ignore[union-attr]


def test_a_lines_interval_holds_its_slope_where_small_tasks_scatter_more():
    rng, sizes_D, hits = np.random.default_rng(0), np.geomspace(5, 500, 20), 0
    for _ in range(400):
        line = trend("x", sizes_D, 1 - 0.05 * np.log2(sizes_D) + rng.normal(0, 1, 20) / sizes_D**0.5)
        assert line is not None
        hits += line.slope.low <= -0.05 <= line.slope.high
    assert 0.92 <= hits / 400 <= 0.985
