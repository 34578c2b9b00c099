import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from poise.studies.kit.bootstrap import bootstrap_over_seeds
from poise.studies.kit.claims import Claim, Measured
from poise.studies.kit.rules import Rule, at_least, holds_in
from poise.studies.kit.seed_interval import seed_interval


def ratio_of_means(a, b):
    return a.mean() / b.mean()


@given(st.lists(st.integers(-1000, 1000).map(lambda n: n / 100), min_size=2, max_size=5))
def test_of_a_mean_the_interval_is_that_of_student(values):
    value, interval = bootstrap_over_seeds(np.mean, values)
    assert value == pytest.approx(np.mean(values))
    assert interval == pytest.approx(seed_interval(values), abs=1e-9)


def test_with_many_seeds_resamples_are_drawn_and_come_close():
    values = np.random.default_rng(3).normal(size=20)
    _, drawn = bootstrap_over_seeds(np.mean, values)
    assert drawn == bootstrap_over_seeds(np.mean, values)[1]
    low, high = seed_interval(list(values))
    assert drawn == pytest.approx((low, high), abs=0.05 * (high - low))


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_interval_of_a_ratio_of_means_covers_the_true_ratio(seeds):
    # Paired values: the noise of a seed is in both. The true ratio is 2.
    rng, draws = np.random.default_rng(seeds), 400
    common = rng.normal(size=(draws, seeds))
    a = 4 + 0.4 * common + 0.3 * rng.normal(size=(draws, seeds))
    b = 2 + 0.2 * common + 0.1 * rng.normal(size=(draws, seeds))
    intervals = [bootstrap_over_seeds(ratio_of_means, *pair, positive=True)[1] for pair in zip(a, b, strict=True)]
    covered = sum(low <= 2 <= high for low, high in intervals)
    # 95 % is meant: neither far fewer, nor so wide that all are covered.
    assert stats.binomtest(covered, draws, 0.95).pvalue > 1e-3
    # The usual percentiles of resampled ratios would not do with 3 seeds.
    if seeds == 3:
        held = sum(min(x / y) <= 2 <= max(x / y) for x, y in zip(a, b, strict=True))
        assert held / draws < 0.8


def test_seeds_are_resampled_together():
    a = np.array([1.0, 2.0, 4.0])
    assert bootstrap_over_seeds(ratio_of_means, 3 * a, a)[1] == pytest.approx((3.0, 3.0))
    rows = np.stack([a, 3 * a], 1)  # values of a seed in a row
    assert bootstrap_over_seeds(lambda r: float(r[:, 1].sum() / r[:, 0].sum()), rows)[1] == pytest.approx((3.0, 3.0))


def test_the_interval_of_a_positive_statistic_is_that_of_its_logarithm():
    a = np.array([1.0, 10.0, 100.0])

    def geometric_mean(values):
        return float(np.exp(np.log(values).mean()))

    value, (low, high) = bootstrap_over_seeds(geometric_mean, a, positive=True)
    logs = seed_interval(list(np.log(a)))
    assert (value, math.log(low), math.log(high)) == pytest.approx((10.0, *logs))
    assert bootstrap_over_seeds(geometric_mean, a)[1][0] < 0 < low


def test_what_cannot_be_resampled_has_an_infinite_interval():
    assert bootstrap_over_seeds(np.mean, [2.0]) == (2.0, (-math.inf, math.inf))
    assert bootstrap_over_seeds(np.mean, [2.0], positive=True) == (2.0, (0.0, math.inf))
    # A resample without the second seed divides by zero.
    assert bootstrap_over_seeds(lambda a: float(1 / a.mean()), [0.0, 1.0])[1] == (-math.inf, math.inf)
    assert bootstrap_over_seeds(np.mean, [math.inf, 1.0]) == (math.inf, (-math.inf, math.inf))


def test_bad_input():
    for bad in ([], [[1.0], [1.0, 2.0]], [[]], [1.0]):
        with pytest.raises(ValueError, match="by_seed must be arrays with the same number of seeds"):
            bootstrap_over_seeds(ratio_of_means, *bad)


def test_a_claim_is_judged_on_the_interval_that_was_measured():
    claim = Claim(
        "gain", "It gains.", "1", "", Rule(at_least("gain", 1), over_seeds=("gain",)), lambda measured: measured
    )
    wide, narrow = (Measured("2", {"gain": 2.0}, intervals={"gain": (low, 3.0)}) for low in (0.5, 1.0))
    assert claim.judge(narrow).verdict == "reproduced"
    result = claim.judge(wide)
    assert result.verdict == "partly"
    assert result.measured == "2; gain 0.5 to 3 (95 % interval, bootstrap over seeds)"
    assert result.to_dict()["intervals"] == {"gain": [0.5, 3.0]}
    with pytest.raises(ValueError, match=r"\['gain'\] are NaN"):
        claim.judge(Measured("2", {"gain": 2.0}, intervals={"gain": (math.nan, 1.0)}))


def test_outcomes_may_be_of_something_else_than_seeds():
    rule = Rule(holds_in(at_least("held", 1), 0.9, unit="problems"))
    assert "in at least 90 % of problems" in rule.words
    assert "3 of 3 problems" in rule.note({"held": [1, 1, 1]})
    over = Rule(at_least("held", 0.9), over_seeds=("held",), unit="problems")
    assert over.words.endswith("across 95 % intervals over problems of: held; partly if it does not.")
    assert "3 of 3 problems" in over.note({"held": [True] * 3})
    assert "mean of 2 problems" in over.note({"held": [1.0, 2.0]})


def test_a_claim_says_why_nothing_is_judged_over_seeds():
    rule = Rule(at_least("gain", 1))
    assert not rule.judges_over_seeds
    assert Rule(holds_in(at_least("gain", 1), 0.5)).judges_over_seeds
    claim = Claim("gain", "It gains.", "1", "Once.", rule, lambda measured: measured, "no seeds enter.")
    assert claim.test.endswith("refuted otherwise. No interval over seeds: no seeds enter.")
