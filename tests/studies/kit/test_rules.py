import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from poise.studies.kit import rules
from poise.studies.kit.rules import Rule, all_or_none, at_least, at_most, beyond, holds_in, where
from poise.studies.kit.seed_interval import seed_interval


@pytest.mark.parametrize(
    ("condition", "words", "held", "not_held"),
    [
        (rules.at_least("gain", 2), "gain ≥ 2", 2, 1.999),
        (rules.at_most("error", 1e-8), "error ≤ 1e-8", 1e-8, 2e-8),
        (rules.above("gain", 0), "gain > 0", 1e-9, 0),
        (rules.below("high", -0.5, "upper end"), "upper end < -0.5", -0.6, -0.5),
        (rules.equal_to("wrong_cases", 0), "wrong cases = 0", 0, 1),
        (rules.within("factor", 0.02, 19, relative=True), "factor within 2 % of 19", 19.3, 18.6),
        (rules.within("log10_bf", 0.1, 24.49), "log10 bf within 0.1 of 24.49", 24.4, 24.6),
        (rules.beyond("factor", 0.1, 19, relative=True), "factor not within 10 % of 19", 21, 18),
        (rules.between("bf", 0.14, 0.22), "0.14 ≤ bf ≤ 0.22", 0.14, 0.221),
    ],
)
def test_a_condition_says_what_it_asks_for_and_asks_for_it(condition, words, held, not_held):
    assert condition.words == words
    (name,) = condition.bounds
    assert condition.holds({name: held}, {})
    assert not condition.holds({name: not_held}, {})


def test_numbers_are_compared_with_each_other_and_with_multiples():
    condition = rules.below("uniform", "standard", times=2)
    assert condition.words == "uniform < 2 times standard"
    assert condition.holds({"uniform": 1.9, "standard": 1}, {})
    assert not condition.holds({"uniform": 2, "standard": 1}, {})
    assert set(condition.bounds) == {"uniform", "standard"}


def test_conditions_join_with_brackets_only_where_words_would_be_ambiguous():
    a, b, c = (at_least(name, 0) for name in "abc")
    assert (a & b & c).words == "a ≥ 0 and b ≥ 0 and c ≥ 0"
    assert ((a | b) & c).words == "(a ≥ 0 or b ≥ 0) and c ≥ 0"
    values = [{"a": x, "b": y, "c": z} for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
    for n in values:
        assert ((a | b) & c).holds(n, {}) == ((n["a"] > 0 or n["b"] > 0) and n["c"] > 0)


def test_a_rule_refutes_first_and_is_partly_in_between():
    rule = Rule(at_most("error", 0.02), beyond("error", 0.1, 0))
    assert rule.words == "Reproduced if error ≤ 0.02; refuted if error not within 0.1 of 0."
    assert [rule.verdict({"error": e}) for e in (0.02, 0.05, 0.2, -1)] == ["reproduced", "partly", "refuted", "refuted"]


def test_a_rule_of_one_condition_knows_no_partly():
    rule = Rule(at_most("error", 1))
    assert rule.words == "Reproduced if error ≤ 1; refuted otherwise."
    assert [rule.verdict({"error": e}) for e in (1, 2)] == ["reproduced", "refuted"]


def test_all_or_none():
    rule = all_or_none(at_least("a", 0), at_least("b", 0))
    assert rule.words == "Reproduced if both hold, refuted if neither does: (1) a ≥ 0; (2) b ≥ 0."
    verdicts = [rule.verdict({"a": a, "b": b}) for a, b in ((0, 0), (0, -1), (-1, 0), (-1, -1))]
    assert verdicts == ["reproduced", "partly", "partly", "refuted"]
    assert set(rule.bounds) == {"a", "b"}


def test_a_condition_of_single_seeds_is_judged_on_the_exact_interval_of_their_fraction():
    rule = Rule(holds_in(at_least("lead", 0.1), 0.5))
    assert rule.words == (
        "Reproduced if in at least 50 % of seeds (exact 95 % interval) lead ≥ 0.1; refuted otherwise."
    )

    def verdict(held, of):
        return rule.verdict({}, {"lead": [0.2] * held + [0.0] * (of - held)})

    # n of n: the lower end is 0.025^(1/n), which passes one half between 5 and 6.
    assert [verdict(n, n) for n in range(1, 8)] == ["partly"] * 5 + ["reproduced"] * 2
    assert [verdict(0, n) for n in range(1, 8)] == ["partly"] * 5 + ["refuted"] * 2
    assert "lead ≥ 0.1 in 4 of 4 seeds (exact 95 % interval 0.40 to 1.00; so few seeds cannot show 50 %)" in rule.note(
        {"lead": [1.0] * 4}
    )
    both = holds_in(at_least("a", 0) & at_least("b", 0), 0.5)
    assert both.holds({}, {"a": [1] * 8, "b": [1] * 8})
    assert not both.holds({}, {"a": [1, -1] * 4, "b": [-1, 1] * 4})
    for fraction in (0, 1):
        with pytest.raises(ValueError, match=r"fraction must lie in \(0, 1\), got"):
            holds_in(at_least("a", 0), fraction)


@pytest.mark.parametrize("seeds", [3, 4])
def test_three_or_four_seeds_of_a_yes_or_no_never_reproduce(seeds):
    rule = Rule(at_least("trains", 0.5), at_most("trains", 0.4), over_seeds=("trains",))
    for yes in range(seeds + 1):
        outcomes = [True] * yes + [False] * (seeds - yes)
        assert rule.verdict({"trains": yes / seeds}, {"trains": outcomes}) == "partly"
    assert "so few seeds cannot show 50 %" in rule.note({"trains": [True] * seeds})
    assert "cannot show" not in rule.note({"trains": [True] * 6})


values = st.floats(-10, 10)
MAKERS = [
    rules.at_least,
    rules.at_most,
    rules.above,
    rules.below,
    rules.equal_to,
    lambda name, bound: rules.within(name, 1.5, bound),
    lambda name, bound: rules.beyond(name, 1.5, bound),
    lambda name, bound: rules.between(name, bound, bound + 2),
]


@given(values, values, st.sampled_from(MAKERS), values, st.floats(0, 1))
def test_an_interval_is_decided_only_if_every_value_in_it_is(first, second, maker, bound, place):
    low, high = sorted((first, second))
    condition = maker("x", bound)
    inside = min(max(low + place * (high - low), low), high)
    everywhere = condition.decide({"x": (low, high)}, {})
    at_points = {condition.decide({"x": value}, {}) for value in (low, inside, high)}
    if everywhere is not None:
        assert at_points == {everywhere}
    assert condition.decide({"x": (low, low)}, {}) == condition.decide({"x": low}, {})


@given(st.tuples(values, values), st.tuples(values, values), values, values)
def test_joined_conditions_follow_three_valued_logic(x, y, a, b):
    numbers = {"x": tuple(sorted(x)), "y": tuple(sorted(y))}
    first, second = rules.above("x", a), rules.below("y", b)
    # False < unknown < true: "and" is the least of both, "or" the greatest.
    order = {False: 0, None: 1, True: 2}
    parts = [order[condition.decide(numbers, {})] for condition in (first, second)]
    assert order[(first & second).decide(numbers, {})] == min(parts)
    assert order[(first | second).decide(numbers, {})] == max(parts)
    rule = all_or_none(first, second)
    expected = "refuted" if max(parts) == 0 else "reproduced" if min(parts) == 2 else "partly"
    assert rule._verdict(numbers, {}) == expected


@given(st.lists(values, min_size=2, max_size=8), values)
def test_a_mean_over_seeds_is_judged_on_the_interval_of_student(seeds, bound):
    assume(np.ptp(seeds) > 1e-3)
    error = stats.t.ppf(0.975, len(seeds) - 1) * np.std(seeds, ddof=1) / len(seeds) ** 0.5
    low, high = np.mean(seeds) - error, np.mean(seeds) + error
    assume(min(abs(low - bound), abs(high - bound)) > 1e-6)
    expected = "reproduced" if low > bound else "refuted" if high < bound else "partly"
    rule = Rule(rules.above("gain", bound), over_seeds=("gain",))
    assert rule.verdict({"gain": np.mean(seeds)}, {"gain": seeds}) == expected
    assert rule.words.endswith("A verdict must hold across 95 % intervals over seeds of: gain; partly if it does not.")


def test_ends_of_intervals_over_seeds():
    assert seed_interval([2.0, 2.0]) == (2.0, 2.0)
    assert seed_interval([2.0]) == seed_interval([1.0, math.inf, 2.0]) == (-math.inf, math.inf)
    low, high = seed_interval([True] * 4)  # exact: 0.025^(1/4)
    assert (low, high) == (pytest.approx(0.025**0.25), 1.0)


def test_a_rule_over_seeds_needs_values_of_numbers_that_it_reads():
    with pytest.raises(ValueError, match=r"over_seeds must name numbers that the rule reads, got \['loss'\]"):
        Rule(at_least("gain", 1), over_seeds=("loss",))
    with pytest.raises(
        ValueError, match=r"by_seed must hold the values of \['gain'\], those of \['gain'\] are missing"
    ):
        Rule(at_least("gain", 1), over_seeds=("gain",)).verdict({"gain": 1.0})


def test_a_condition_of_any_shape():
    condition = where("the sum is odd", ["a", "b"], lambda n: (n["a"] + n["b"]) % 2 == 1)
    assert condition.holds({"a": 1, "b": 2}, {})
    assert not condition.holds({"a": 1, "b": 1}, {})
    assert condition.decide({"a": (1.0, 2.0), "b": 2.0}, {}) is None
