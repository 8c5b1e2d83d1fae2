"""The axis over tau, with its ends beyond breaks."""

import math

import numpy as np
import pytest

from bora_sweep.report.figures.tau_axis import TauAxis


@pytest.mark.parametrize("taus", [[5.0], [0.0, math.inf], [0.0, 3.0], [0.0, 1.0, 10.0, math.inf], [2.0, 3.0, math.inf]])
def test_the_tau_axis_ascends_and_its_parts_join_all_places(taus: list[float]):
    scale = TauAxis(taus)
    assert (np.diff(scale.x) > 0).all()
    assert {i for part, _ in scale.parts() for i in range(len(taus))[part]} == set(range(len(taus)))
