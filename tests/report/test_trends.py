"""Laws of lines through tasks."""

import math

import numpy as np
import pytest

from bora_sweep.report.stats.trends import fit_trend


def test_a_line_is_found_exactly():
    sizes_D = np.array([4.0, 8.0, 16.0, 64.0, 64.0])
    line = fit_trend("x", sizes_D, 3 - 0.5 * np.log2(sizes_D))
    assert line is not None
    assert (line.slope.estimate, line.slope.low, line.slope.high) == pytest.approx((-0.5, -0.5, -0.5))
    assert np.array(line.line(np.array([8.0, 32.0]))) == pytest.approx(np.array([[1.5, 0.5]] * 3))
    power = fit_trend("x", sizes_D, 3 * sizes_D**0.5, is_log=True)
    assert power is not None
    assert power.slope.estimate == pytest.approx(2**0.5 - 1)
    assert power.line(np.array([25.0]))[0] == pytest.approx(15)


def test_a_line_needs_four_tasks_of_more_than_one_size_and_leaves_out_what_is_not_known():
    sizes_D = np.array([4.0, 8.0, 16.0, 32.0])
    assert fit_trend("x", sizes_D[:3], sizes_D[:3]) is None
    assert fit_trend("x", np.full(5, 9.0), np.arange(5.0)) is None
    assert fit_trend("x", sizes_D, np.array([1.0, math.nan, 2.0, 3.0])) is None
    assert fit_trend("x", sizes_D, np.array([1.0, 0.0, 2.0, 3.0]), is_log=True) is None
    assert fit_trend("x", np.r_[0, sizes_D], np.arange(5.0)).num_tasks == 4  # type: ignore[union-attr]


def test_a_lines_interval_holds_its_slope_where_small_tasks_scatter_more():
    rng, sizes_D, hits = np.random.default_rng(0), np.geomspace(5, 500, 20), 0
    for _ in range(400):
        line = fit_trend("x", sizes_D, 1 - 0.05 * np.log2(sizes_D) + rng.normal(0, 1, 20) / sizes_D**0.5)
        assert line is not None
        hits += line.slope.low <= -0.05 <= line.slope.high
    assert 0.92 <= hits / 400 <= 0.985
