import pytest
import torch

from poise.dynamics import find_fixed_point
from poise.studies import catalysis as study
from poise.studies import load_study


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


CASES = [
    ("rate", {"grids": 2, "stable": 2, "worst_error": 0.02}, "reproduced"),
    ("rate", {"grids": 2, "stable": 2, "worst_error": 0.03}, "refuted"),
    ("rate", {"grids": 2, "stable": 1, "worst_error": 0.0}, "refuted"),
    (
        "manifold",
        {"grids": 2, "fewest_neutral": 2, "most_neutral": 2, "normally_stable": 2, "worst_error": 0.05},
        "reproduced",
    ),
    (
        "manifold",
        {"grids": 2, "fewest_neutral": 2, "most_neutral": 3, "normally_stable": 2, "worst_error": 0.0},
        "refuted",
    ),
    (
        "manifold",
        {"grids": 2, "fewest_neutral": 2, "most_neutral": 2, "normally_stable": 1, "worst_error": 0.0},
        "refuted",
    ),
    (
        "manifold",
        {"grids": 2, "fewest_neutral": 2, "most_neutral": 2, "normally_stable": 2, "worst_error": 0.06},
        "refuted",
    ),
    ("fate", {"runs": 4, "foretold": 4}, "reproduced"),
    ("fate", {"runs": 4, "foretold": 3}, "refuted"),
    ("condition", {"draws": 5, "condition_holds": 5, "normally_stable": 5}, "reproduced"),
    ("condition", {"draws": 5, "condition_holds": 5, "normally_stable": 4}, "refuted"),
    ("condition", {"draws": 5, "condition_holds": 4, "normally_stable": 5}, "refuted"),
    ("baseline", {"worst_eigenvector": 1e-5, "best_single": 0.01, "median_single": 0.05}, "reproduced"),
    ("baseline", {"worst_eigenvector": 1e-3, "best_single": 1e-4, "median_single": 0.05}, "partly"),
    ("baseline", {"worst_eigenvector": 0.1, "best_single": 1e-4, "median_single": 0.05}, "refuted"),
]


@pytest.mark.parametrize(("claim", "numbers", "verdict"), CASES)
def test_a_verdict_follows_from_the_numbers(claim, numbers, verdict):
    judge = {c.id: c.judge for c in study.CLAIMS}[claim]
    assert judge(numbers) == verdict


@pytest.mark.slow
def test_the_tiny_study_runs_reports_and_repeats():
    shares = []
    outcome = load_study("catalysis").run("tiny", progress=lambda share, words: shares.append(share))
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    assert "not tested" not in {r.verdict for r in outcome.results}
    assert "Where stability is lost" in outcome.report().to_html()
    seeded = {r.claim.id: r.numbers for r in outcome.results}
    case = study.throughflow(study.GRIDS["tiny"][0])
    assert study.one_random_perturbation(case, 0) in (
        seeded["baseline"]["best_single"],
        2 * seeded["baseline"]["median_single"] - seeded["baseline"]["best_single"],
    )
