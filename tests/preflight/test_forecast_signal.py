import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.preflight import forecast_signal

SIZES = np.array([2e5, 1e6, 6e6, 4e7, 2e8])


def quadratic(sizes, a, b, c):
    x = np.log10(sizes)
    return 10 ** (a + b * x + c * x**2)


@given(b=st.floats(0.2, 1), c=st.floats(0.02, 0.2), beyond=st.floats(0.1, 3))
def test_recovers_an_exact_quadratic(b, c, beyond):
    target = 10 ** (math.log10(SIZES[-1]) + beyond)
    values = quadratic(SIZES, -4, b, c)
    threshold = quadratic(target, -4, b, c)
    forecast = forecast_signal(SIZES, values, threshold)
    assert forecast.crossing == pytest.approx(target, rel=1e-4)
    assert forecast.interval == pytest.approx((target, target), rel=1e-4)  # leaving one out leaves 4 exact points
    assert forecast.predict(target)[0] == pytest.approx(threshold, rel=1e-4)


def test_a_straight_line_is_no_parabola_that_turns_back():
    forecast = forecast_signal([1e2, 1e3, 1e4, 1e5], [1.0, 10.0, 100.0, 1000.0], 1e30)
    assert forecast.crossing == pytest.approx(1e32, rel=1e-3)


def test_falling_signals_cross_from_above():
    forecast = forecast_signal([1e6, 1e7, 1e8], [1e-5, 1e-6, 1e-7], threshold=1e-8)
    assert forecast.crossing == pytest.approx(1e9, rel=1e-6)


def test_never_is_infinite():
    values = 10 ** (2 - (np.log10(SIZES) - 8.5) ** 2 / 10)  # peaks at 100
    assert math.isinf(forecast_signal(SIZES, values, 1e4).crossing)


def test_a_limit_that_is_crossed_already_gives_the_smallest_size():
    assert forecast_signal([1.0, 10.0, 100.0], [5.0, 6.0, 7.0], 4.0).crossing == pytest.approx(1.0)


def test_interval_holds_the_fit_and_widens_with_noise():
    exact = quadratic(SIZES, -4, 0.5, 0.05)
    noisy = exact * np.array([1.2, 0.8, 1.2, 0.8, 1.2])
    forecast = forecast_signal(SIZES, noisy, 1e4)
    low, high = forecast.interval
    assert low < forecast.crossing < high
    middle, low, high = forecast.predict(1e10)
    assert low < middle < high


def test_three_sizes_leave_straight_lines():
    sizes, values = [1e3, 1e4, 1e5], [10.0, 100.0, 3000.0]
    line = np.polyfit([3, 4], [1, 2], 1)
    lows = forecast_signal(sizes, values, 1e4).predict(1e6)
    assert lows[1] == pytest.approx(10 ** np.polyval(line, 6), rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2], [1, 2]), "sizes must be a list of at least 3"),
        (([1, 2, 3], [1, 2]), "values must have one entry per size"),
        (([1, 3, 2], [1, 2, 3]), "sizes must be strictly increasing"),
        (([1, 2, 2], [1, 2, 3]), "sizes must be strictly increasing"),
        (([0, 1, 2], [1, 2, 3]), "sizes must be positive"),
        (([1, 2, 3], [1, 0, 3]), "values must be positive"),
        (([1, 2, 3], [1, math.nan, 3]), "values must be positive"),
        (([1, 2, 3], [1, 2, 3], -1.0), "threshold must be positive"),
        (([1, 2, 3], [1, 2, 3], 1e4, 3), r"degree must lie in \[1, 2\]"),
        (([1, 2, 3], [1, 2, 3], 1e4, 0), "degree must lie in"),
    ],
)
def test_bad_measurements(arguments, message):
    with pytest.raises(ValueError, match=message):
        forecast_signal(*arguments)


@pytest.mark.parametrize("size", [0, -1, math.nan])
def test_bad_size_of_a_prediction(size):
    with pytest.raises(ValueError, match="size must be positive"):
        forecast_signal([1, 2, 3], [1, 2, 3]).predict(size)
