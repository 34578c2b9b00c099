"""Student's interval of a mean, against scipy's."""

import numpy as np
import pytest
from scipy import stats

from poise.evidence import mean_interval


def test_it_is_students_interval_and_infinite_for_one_value():
    values = np.random.default_rng(0).normal(size=7)
    found = mean_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(values.mean())
    assert mean_interval(values[:1]).high == np.inf
