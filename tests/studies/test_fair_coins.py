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


@pytest.mark.slow
def test_report_of_the_coins_is_complete(outcome):
    report = outcome.report()
    html = report.to_html()
    assert "Each group alone and with the others" in html
    assert "orders of magnitude" in report.summary
    assert len(outcome.measurement.picture.data) == 1


@pytest.mark.slow
def test_same_seeds_same_numbers(outcome):
    again = load_study("fair-coins").run("tiny")
    assert [r.numbers for r in again.results] == [r.numbers for r in outcome.results]


CASES = {
    "pooled": ({"log10_bf": 17.233}, {"log10_bf": 17.5}, {"log10_bf": 1.9}),
    "same-side": ({"bf": 2400.0}, {"bf": 3000.0}, {"bf": 99.0}),
    "heads": ({"bf": 0.18}, {"bf": 0.5}, {"bf": 1.1}),
    "people": ({"log10_bf": 24.5}, {"log10_bf": 20.0}, {"log10_bf": 0.9}),
    "outliers": ({"bf": 787.0}, {"bf": 300.0}, {"bf": 10.0}),
    "estimate": (
        {"mean": 0.5098, "low": 0.5050, "high": 0.5147, "heterogeneity": 0.0156},
        {"mean": 0.5098, "low": 0.5060, "high": 0.5147, "heterogeneity": 0.0156},
        {"mean": 0.5098, "low": 0.4990, "high": 0.5147, "heterogeneity": 0.0156},
    ),
    "seeds": (
        {"worst_share": 0.0, "lower_end": 0.0, "upper_end": 0.015},
        {"worst_share": 0.0, "lower_end": 0.0, "upper_end": 0.3},
        {"worst_share": 0.2, "lower_end": 0.15, "upper_end": 0.25},
    ),
}


@pytest.mark.parametrize("claim_id", CASES)
def test_each_test_can_come_out_each_way(claim_id):
    claim = next(c for c in load_study("fair-coins").claims if c.id == claim_id)
    assert [claim.judge(numbers) for numbers in CASES[claim_id]] == ["reproduced", "partly", "refuted"]


def test_simulated_wins_have_the_stated_truth():
    equal, varied = _draw(EQUAL, 0, 2000), _draw(VARIED, 0, 2000)
    assert equal.shape == (2000, 5)
    assert equal.mean() == pytest.approx(10.0, abs=0.1)
    assert varied.mean() == pytest.approx(10.0, abs=0.15)
    assert equal.var() == pytest.approx(5.0, rel=0.05)  # 20 * 0.5 * 0.5
    assert varied.var() > 1.5 * equal.var()
    assert (_draw(EQUAL, 0, 10) == _draw(EQUAL, 0, 10)).all()
    assert (_draw(EQUAL, 0, 10) != _draw(EQUAL, 1, 10)).any()
