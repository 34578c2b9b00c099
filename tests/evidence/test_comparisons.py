import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from poise.evidence import (
    VERDICTS,
    compare_event_rates,
    compare_paired,
    paired_wins,
    verdict_of,
)

scores = st.lists(st.floats(-100, 100).map(lambda v: round(v, 3)), min_size=2, max_size=8)


@settings(max_examples=8, deadline=None)
@given(scores, st.integers(0, 1000), st.sampled_from([1e-60, 1.0, 1e60]))
def test_exchanging_the_arms_mirrors_the_comparison(control, seed, scale):
    control = scale * np.array(control)
    treated = control + scale * np.random.default_rng(seed).normal(0.3, 1.0, len(control))
    one, other = compare_paired(control, treated), compare_paired(treated, control)
    assert one.difference == pytest.approx(-other.difference, rel=1e-9, abs=0)
    assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]), rel=1e-9, abs=0)
    assert one.bootstrap_interval[0] <= one.difference <= one.bootstrap_interval[1]
    assert one.p_better == pytest.approx(1 - other.p_better, abs=1e-9)
    higher = compare_paired(treated, control, lower_is_better=False)
    assert higher.p_better == pytest.approx(one.p_better, abs=1e-9)


def test_posterior_is_the_t_interval():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=9), rng.normal(size=9)
    fit = compare_paired(a, b)
    exact = stats.ttest_rel(b, a)
    assert fit.interval == pytest.approx(tuple(exact.confidence_interval()))
    assert fit.p_better == pytest.approx(stats.ttest_rel(b, a, alternative="less").pvalue * -1 + 1)


def test_shift_and_scale_of_the_scores_do_not_matter():
    a, b = [2.5, 2.4, 2.7, 2.6], [2.3, 2.35, 2.4, 2.5]
    one = compare_paired(a, b)
    other = compare_paired([10 * v + 3 for v in a], [10 * v + 3 for v in b])
    assert other.p_better == pytest.approx(one.p_better)
    assert other.bootstrap_interval == pytest.approx(tuple(10 * v for v in one.bootstrap_interval))


def test_same_seed_same_bootstrap():
    a, b = np.random.default_rng(1).normal(size=(2, 12))
    assert compare_paired(a, b, seed=4) == compare_paired(a, b, seed=4)
    assert compare_paired(a, b, seed=4).bootstrap_interval != compare_paired(a, b, seed=5).bootstrap_interval


def test_no_difference_is_rarely_proved():
    rng = np.random.default_rng(0)
    proved = [compare_paired(*rng.normal(size=(2, 3))).verdict == "proved" for _ in range(80)]
    assert np.mean(proved) <= 0.08  # 2.5 % and the luck of 80 draws


def test_one_pair_is_a_hint_at_most():
    fit = compare_paired([2.0], [1.0])
    assert (fit.verdict, fit.p_better, fit.interval) == ("helps, not proved", 0.5, (-math.inf, math.inf))
    assert fit.note
    assert compare_paired([1.0], [2.0]).verdict == "hurts"
    assert compare_paired([1.0], [1.0]).verdict == "no effect"


def test_ties_are_no_effect():
    fit = compare_paired([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (fit.verdict, fit.p_better, fit.interval) == ("no effect", 0.5, (0.0, 0.0))


@pytest.mark.parametrize(("n", "word"), [(2, "helps, not proved"), (4, "helps, not proved"), (5, "proved")])
def test_equal_differences_prove_only_with_enough_wins(n, word):
    # 0.1 + 0.2 - 0.2 and the like: equal but for rounding.
    control = np.linspace(0.3, 0.7, n)
    fit = compare_paired(control, control - 0.1)
    assert fit.p_better == pytest.approx(1 - 0.5 ** (n + 1))
    assert fit.verdict == word


def test_an_effect_below_the_smallest_that_matters_is_not_proved():
    control, treated = [2.50, 2.48, 2.60, 2.55], [2.49, 2.471, 2.588, 2.541]
    assert compare_paired(control, treated).verdict == "proved"
    assert compare_paired(control, treated, min_effect=0.05).verdict == "no effect"


def test_diverged_runs_need_a_stated_treatment():
    with pytest.raises(ValueError, match=r"control must be finite.*got nan at position 1.*diverged_as"):
        compare_paired([1.0, math.nan], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"treated must be finite.*got inf"):
        compare_paired([1.0, 1.0], [1.0, math.inf])
    fit = compare_paired([4.1, math.nan, math.inf], [2.1, 2.2, 2.3], diverged_as=4.0)
    assert (fit.diverged_control, fit.diverged_treated) == (2, 0)
    assert fit.mean_control == pytest.approx((4.1 + 4 + 4) / 3)
    with pytest.raises(ValueError, match="diverged_as must be finite"):
        compare_paired([1.0], [1.0], diverged_as=math.inf)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [1.0, 2.0]), "one score per seed each, got 1 and 2"),
        (([], []), "control must be a one-dimensional"),
        (([[1.0]], [1.0]), "control must be a one-dimensional"),
        (([1.0], [1.0], True, 0, -0.1), "min_effect must be"),
    ],
)
def test_bad_pairs(arguments, message):
    with pytest.raises(ValueError, match=message):
        compare_paired(*arguments)


def test_report_of_pairs_names_the_verdict():
    fit = compare_paired([2.51, 2.48, 2.60], [2.31, 2.30, 2.38])
    assert fit.report().verdict == fit.verdict == "proved"
    assert "lower is better" in fit.report().summary
    assert compare_paired([2.0], [1.0]).report().to_html()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_event_rates_against_sampling_and_symmetry(a, rest_a, b, rest_b):
    n_a, n_b = a + rest_a + 1, b + rest_b + 1
    fit = compare_event_rates(a, n_a, b, n_b)
    rng = np.random.default_rng(0)
    difference = rng.beta(b + 1, n_b - b + 1, 40_000) - rng.beta(a + 1, n_a - a + 1, 40_000)
    assert fit.p_better == pytest.approx(np.mean(difference < 0), abs=0.012)
    assert fit.interval == pytest.approx(tuple(np.quantile(difference, [0.025, 0.975])), abs=0.02)
    assert compare_event_rates(b, n_b, a, n_a).p_better == pytest.approx(1 - fit.p_better, abs=1e-8)


def test_closed_form_of_all_against_none():
    # With uniform priors P = 1 - 1 / C(2n + 2, n + 1).
    for n in (1, 2, 3, 5):
        fit = compare_event_rates(n, n, 0, n)
        assert fit.p_better == pytest.approx(1 - 1 / math.comb(2 * n + 2, n + 1), abs=1e-9)
    assert compare_event_rates(3, 3, 0, 3).verdict == "proved"
    assert compare_event_rates(2, 2, 0, 2).verdict == "helps, not proved"


@pytest.mark.parametrize("n", [3, 5])
def test_equal_rates_are_rarely_proved_different(n):
    proved = np.array(
        [[compare_event_rates(a, n, b, n).verdict == "proved" for b in range(n + 1)] for a in range(n + 1)]
    )
    for rate in (0.1, 0.3, 0.5, 0.7, 0.9):
        weight = stats.binom.pmf(np.arange(n + 1), n, rate)
        assert weight @ proved @ weight <= 0.05


def test_min_effect_and_harm_of_event_rates():
    assert compare_event_rates(9, 10, 1, 10).verdict == "proved"
    assert compare_event_rates(9, 10, 1, 10, min_effect=0.6).verdict != "proved"
    assert compare_event_rates(0, 4, 3, 4).verdict == "hurts"
    assert compare_event_rates(2, 4, 2, 4).verdict == "no effect"
    assert "3 of 3 runs" in compare_event_rates(3, 3, 0, 3).report().summary


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 3, 0, 3), "n_a must be at least 1 and at least events_a"),
        ((0, 0, 0, 3), "n_a must be at least 1"),
        ((-1, 3, 0, 3), "events_a must be whole"),
        ((0, 3, 0.5, 3), "events_b must be whole"),
        ((0, 3, 0, 3, 1.0), "min_effect must lie"),
    ],
)
def test_bad_event_counts(arguments, message):
    with pytest.raises(ValueError, match=message):
        compare_event_rates(*arguments)


def test_the_rule_of_the_words():
    assert verdict_of(0.975, 0.0) == "proved"
    assert verdict_of(0.999, 0.0, second_interval_agrees=False) == "helps, not proved"
    assert verdict_of(0.8, 0.2) == "helps, not proved"
    assert verdict_of(0.79, 0.21) == "no effect"
    assert verdict_of(0.1, 0.8) == "hurts"
    assert set(VERDICTS) == {"proved", "helps, not proved", "no effect", "hurts"}
    for wrong in ((1.1, 0.0), (0.7, 0.7), (math.nan, 0.0)):
        with pytest.raises(ValueError, match="must be probabilities"):
            verdict_of(*wrong)


def test_wins_are_counted_per_group_without_ties():
    wins = paired_wins([2.0, 2.0, 1.0, 1.0], [1.0, 2.0, 0.5, 3.0], [0, 1, 0, 1], ["x", "x", "y", "y"])
    assert wins.groups == ("x", "y")
    assert (wins.successes, wins.trials, wins.ties) == ((1, 1), (1, 2), (1, 0))
    higher = paired_wins([2.0, 2.0, 1.0, 1.0], [1.0, 2.0, 0.5, 3.0], lower_is_better=False)
    assert (higher.successes, higher.trials) == ((1,), (3,))
    assert "B wins 2 of 3 pairs" in wins.report().summary


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [1.0, 2.0]), "a and b must hold one score"),
        (([1.0, 2.0], [1.0, 2.0], [0, 0]), "seeds must not repeat"),
        (([1.0, 2.0], [1.0, 2.0], [0]), "seeds must have one entry"),
        (([1.0, 2.0], [1.0, 2.0], None, ["x"]), "groups must have one label"),
        (([1.0, math.nan], [1.0, 2.0]), "a must be finite"),
    ],
)
def test_bad_wins(arguments, message):
    with pytest.raises(ValueError, match=message):
        paired_wins(*arguments)
