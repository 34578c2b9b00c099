"""Simulated rows: their effects and propensities are what they say."""

import numpy as np
import pytest

from poise.causal import simulated_effects


@pytest.mark.parametrize("setup", ["A", "B", "C", "C-uniform", "D", "E", "F"])
def test_weighted_outcomes_have_the_effects(setup):
    rows = simulated_effects(setup, 200_000, seed=0)
    t, e = rows.treatment, rows.propensity
    assert (e > 0).all()
    assert (e < 1).all()
    assert t.mean() == pytest.approx(e.mean(), abs=0.005)
    overlap = e * (1 - e)
    weighted = np.mean((t / e - (1 - t) / (1 - e)) * rows.y * overlap) / overlap.mean()
    assert weighted == pytest.approx(np.average(rows.effect, weights=overlap), abs=0.05)
    again = simulated_effects(setup, 10, seed=0)
    np.testing.assert_array_equal(again.X, simulated_effects(setup, 10, seed=0).X)


@pytest.mark.parametrize(("setup", "columns", "message"), [("Z", None, "setup must be"), ("E", 2, "from 1 to 1")])
def test_bad_input_is_named(setup, columns, message):
    with pytest.raises(ValueError, match=message):
        simulated_effects(setup, 10, 0, columns)
