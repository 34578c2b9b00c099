import numpy as np
import pytest

from poise.continual import averaging_lag

from ..rules.cases import scores


def test_an_average_that_is_behind_on_the_task_that_is_trained_is_named():
    trained = scores([[0.2, 0.0], [0.8, 0.0], [0.8, 0.5], [0.8, 0.9]], [0, 0, 1, 1])
    served = scores([[0.1, 0.0], [0.8, 0.0], [0.8, 0.1], [0.8, 0.4]], [0, 0, 1, 1])
    with pytest.warns(UserWarning, match=r"by up to 0.50 on \['task 2'\]"):
        lags = averaging_lag(served, trained)
    np.testing.assert_allclose(lags, [0.0, -0.5])


def test_an_average_that_keeps_up_is_silent_and_other_rows_are_refused():
    trained = scores([[0.2, 0.0, 0.0], [0.8, 0.4, 0.0]], [0, 1])
    lags = averaging_lag(trained, trained)
    np.testing.assert_allclose(lags[:2], 0)
    assert np.isnan(lags[2])  # never trained
    with pytest.raises(ValueError, match="same updates and tasks"):
        averaging_lag(trained, scores([[0.2, 0.0, 0.0]], [0]))
