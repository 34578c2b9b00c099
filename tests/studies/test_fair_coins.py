import math

import numpy as np
import pytest

from poise.studies import load_study
from poise.studies.fair_coins import EQUAL, VARIED, _draw, same_side_probability


@pytest.fixture(scope="module")
def outcome():
    return load_study("fair-coins").run("tiny")


def test_physics_of_the_toss():
    assert same_side_probability(90) == pytest.approx(0.5)
    assert same_side_probability(45) == same_side_probability(20) == same_side_probability(160) == 1.0
    assert same_side_probability(45 + 1e-9) == pytest.approx(1.0, abs=1e-3)
    assert same_side_probability(70) == pytest.approx(same_side_probability(110))
    angles = np.linspace(46, 90, 20)
    assert (np.diff([same_side_probability(a) for a in angles]) < 0).all()
    with pytest.raises(ValueError, match="angle must lie"):
        same_side_probability(181)


@pytest.mark.slow
def test_claims_about_coins_are_judged_by_the_published_figures(outcome):
    results = {r.claim.id: r for r in outcome.results}
    assert results["pooled"].numbers["log10_bf"] == pytest.approx(math.log10(1.7098e17), abs=1e-3)
    assert results["same-side"].numbers["bf"] == pytest.approx(2359, rel=0.1)
    assert results["people"].numbers["log10_bf"] == pytest.approx(24.49, abs=0.1)
    estimate = results["estimate"].numbers
    assert (estimate["mean"], estimate["low"], estimate["high"]) == pytest.approx((0.5098, 0.5050, 0.5147), abs=3e-4)
    assert results["coins"].verdict == "not tested"
    assert results["coins"].numbers == {}


def test_simulated_wins_have_the_stated_truth():
    equal, varied = _draw(EQUAL, 0, 2000), _draw(VARIED, 0, 2000)
    assert equal.shape == (2000, 5)
    assert equal.mean() == pytest.approx(10.0, abs=0.1)
    assert varied.mean() == pytest.approx(10.0, abs=0.15)
    assert equal.var() == pytest.approx(5.0, rel=0.05)  # 20 * 0.5 * 0.5
    assert varied.var() > 1.5 * equal.var()
    assert (_draw(EQUAL, 0, 10) == _draw(EQUAL, 0, 10)).all()
    assert (_draw(EQUAL, 0, 10) != _draw(EQUAL, 1, 10)).any()
