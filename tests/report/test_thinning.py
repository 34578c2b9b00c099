import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.report.thinning import spread, thin

curves = st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")) | st.just(float("inf")), min_size=1, max_size=400)


@settings(max_examples=40, deadline=None)
@given(curves, st.integers(8, 60))
def test_thinning_keeps_extremes_ends_and_order(values, limit):
    y = np.array(values)
    kept = thin(y, limit)
    assert len(kept) <= limit or len(y) <= limit
    assert (np.diff(kept) > 0).all()
    assert kept[0] == 0
    assert kept[-1] == len(y) - 1
    finite = y[np.isfinite(y)]
    if len(finite):
        thinned = y[kept][np.isfinite(y[kept])]
        assert thinned.min() == finite.min()
        assert thinned.max() == finite.max()
    assert np.isfinite(y).all() == np.isfinite(y[kept]).all()


def test_a_spike_of_one_step_survives():
    y = np.zeros(100_000)
    y[54_321] = 9.0
    kept = thin(y, 500)
    assert 54_321 in kept
    assert len(kept) <= 500


def test_every_bucket_keeps_its_own_extremes():
    rng = np.random.default_rng(0)
    y = rng.standard_normal(10_000)
    kept = thin(y, 1002)
    for bucket in range(500):
        stretch = slice(20 * bucket, 20 * bucket + 20)
        inside = y[kept[(kept >= stretch.start) & (kept < stretch.stop)]]
        assert inside.min() == y[stretch].min()
        assert inside.max() == y[stretch].max()


def test_few_points_are_left_alone():
    assert thin(np.arange(10.0), 10).tolist() == list(range(10))
    with pytest.raises(ValueError, match=r"limit.*7"):
        thin(np.zeros(3), 7)


@settings(max_examples=40, deadline=None)
@given(curves, st.integers(2, 40))
def test_spread_holds_the_extremes(values, count):
    y = np.array(values)
    kept = spread(y, count)
    assert len(kept) <= count + 2
    finite = np.isfinite(y)
    if finite.any():
        assert y[kept][np.isfinite(y[kept])].max() == y[finite].max()
