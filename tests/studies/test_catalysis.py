import torch

from poise.dynamics import find_fixed_point
from poise.studies import catalysis as study


def test_random_balances_are_equilibria_and_differ():
    states = []
    for seed in (0, 1):
        pore, x = study.random_balance(seed)
        assert pore.rate(x).abs().max() < 1e-10 * x.max()
        surface = pore.split(x)[1]
        torch.testing.assert_close(surface, surface[:, :1].expand_as(surface))
        states.append(x)
    assert not torch.allclose(*states)
    again = study.random_balance(1)[1]
    assert torch.equal(states[1], again)


def test_laws_are_the_totals():
    pore, x = study.random_balance(3)
    totals = pore.totals(x)
    torch.testing.assert_close(study.conserved_totals(pore) @ x, totals[:2] + totals[2])
    assert (study.conserved_totals(pore) @ pore.rate(torch.rand(len(x), dtype=torch.float64))).abs().max() < 1e-10


def test_abscissa_rises_with_the_strength_of_autocatalysis():
    values = [study.abscissa_at_zero((3, 6), gamma) for gamma in (0.0, 0.2, 0.5, 0.8, 1.5)]
    assert values == sorted(values)
    assert values[0] < 0 < values[-1]


def test_fates_are_judged_by_where_they_end():
    assert study.Fate(0.2, -0.05, 1e-8).foretold
    assert study.Fate(0.8, 0.4, 11.0).foretold
    assert not study.Fate(0.8, 0.4, 1e-8).foretold
    assert not study.Fate(0.2, -0.05, 11.0).foretold
    assert not study.Fate(0.2, -0.05, 0.01).foretold  # neither here nor there


def test_the_empty_pore_is_an_equilibrium_of_autocatalysis():
    pore = study.autocatalytic((3, 6), 0.8)
    zero = torch.zeros(pore.n_unknowns, dtype=torch.float64)
    assert find_fixed_point(pore.flow(), zero).n_steps == 0
