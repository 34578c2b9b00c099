import pytest

from poise.studies.kit import rules
from poise.studies.kit.rules import Rule, all_or_none, at_least, at_most, beyond, holds_in, where


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


def test_a_condition_of_single_seeds():
    rule = Rule(holds_in(at_least("lead", 0.1), 2 / 3), holds_in(at_most("lead", 0)))
    assert rule.words == (
        "Reproduced if in at least 66.7 % of the seeds lead ≥ 0.1; refuted if in every seed lead ≤ 0."
    )
    verdicts = [rule.verdict({}, {"lead": lead}) for lead in ((0.1, 0.2, -1), (0.1, 0, 0), (0, -1, 0))]
    assert verdicts == ["reproduced", "partly", "refuted"]
    both = holds_in(at_least("a", 0) & at_least("b", 0), 0.5)
    assert both.holds({}, {"a": (1, -1), "b": (1, 1)})
    assert not both.holds({}, {"a": (1, -1), "b": (-1, 1)})
    with pytest.raises(ValueError, match=r"fraction must lie in \(0, 1\], got 0"):
        holds_in(at_least("a", 0), 0)


def test_a_condition_of_any_shape():
    condition = where("the sum is odd", ["a", "b"], lambda n: (n["a"] + n["b"]) % 2 == 1)
    assert condition.holds({"a": 1, "b": 2}, {})
    assert not condition.holds({"a": 1, "b": 1}, {})
