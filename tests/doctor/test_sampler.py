import itertools

import pytest

from poise.doctor.budget import Budget
from poise.doctor.tap.sampler import Sampler


def looks(sampler: Sampler, steps: int, first: int = 0) -> list[int]:
    """Return the steps of one optimizer that are looked at."""
    seen = []
    for step in range(first, first + steps):
        if sampler.sampling:
            seen.append(step)
        sampler.next(1, step + 1, [1])
    return seen


def test_looks_are_dense_at_first_and_then_ever_wider():
    seen = looks(Sampler(Budget(1.0, loan=1e9)), 1000)
    gaps = [b - a for a, b in itertools.pairwise(seen)]
    assert seen[:5] == [0, 1, 2, 3, 4]
    assert gaps == sorted(gaps)
    assert gaps[-1] == 50


def test_a_trigger_brings_a_burst():
    sampler = Sampler(Budget(1.0, loan=1e9))
    looks(sampler, 500)
    assert sampler.trigger()
    assert len(looks(sampler, 30, first=500)) >= 29


def test_without_budget_only_the_first_step_is_looked_at_and_triggers_have_three_loans():
    budget = Budget(1e-9, loan=0.0)
    sampler = Sampler(budget)
    sampler.next(1, 1, [1])
    assert looks(sampler, 200, first=1) == []
    granted = []
    for _ in range(5):
        granted.append(sampler.trigger())
        for step in range(40):  # the burst ends; it spends all that was lent
            sampler.next(1, 1000 + step, [1])
        budget.spent += 10.0
        budget.looked += 10.0
    assert granted == [True, True, True, False, False]


@pytest.mark.parametrize(("cost", "loan"), [(0.001, 0.1), (0.01, 0.2), (0.1, 0.5)])
def test_the_first_loan_is_what_twenty_looks_cost_within_bounds(cost, loan):
    budget = Budget(1e-9)
    sampler = Sampler(budget)
    for step, dearer in enumerate((2.0, 1.0, 1.0)):  # the first look finds the caches cold
        sampler._start(step, [1])
        budget.spent += dearer * cost
        sampler._stop()
    assert budget.loan == pytest.approx(loan, rel=1e-3)


def test_a_look_lasts_until_every_optimizer_has_stepped():
    sampler = Sampler(Budget(1.0, loan=1e9))
    sampler.expect(1)
    assert sampler.next(1, 1, [1, 2])
    sampler._start(10, [1, 2])
    assert sampler.next(1, 11, [1, 2])
    assert sampler.sampling
