import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.report import words


@given(st.floats(-1e12, 1e12).filter(lambda v: v == 0 or abs(v) > 1e-12))
def test_a_written_number_is_right_to_four_digits(value):
    text = words.number(value).replace(",", "").replace("−", "-")
    assert math.isclose(float(text), value, rel_tol=5.1e-4, abs_tol=0)


@given(st.integers(-(10**9), 10**9))
def test_whole_numbers_are_written_whole(value):
    assert int(words.number(value).replace(",", "").replace("−", "-")) == value


@pytest.mark.parametrize(("value", "text"), [(math.nan, "NaN"), (math.inf, "∞"), (-math.inf, "−∞"), (0.0, "0")])
def test_numbers_without_digits(value, text):
    assert words.number(value) == text


def test_percent_never_claims_a_certainty():
    assert words.percent(0.9999) == ">99 %"
    assert words.percent(0.0001) == "<1 %"
    assert words.percent(1.0) == "100 %"


def test_tones_of_the_vocabulary():
    assert words.tone_of("Proved: it holds") == "good"
    assert words.tone_of("helps, not proved") == "warning"
    assert words.tone_of("refuted here") == "bad"
    assert words.tone_of("no effect") == "neutral"
    assert words.tone_of("stable up to lr 0.03") == "good"
    assert words.tone_of("unstable") == "bad"
    assert words.tone_of("will fail as it is") == "bad"
    assert words.tone_of("at risk") == "warning"
