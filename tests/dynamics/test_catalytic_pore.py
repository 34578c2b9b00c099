import math

import numpy as np
import pytest
import torch

from poise.dynamics import CatalyticPore, decay_rate, reversible_reaction, stability


def no_reaction(s):
    return torch.zeros_like(s)


def small(**changes):
    return CatalyticPore(**({"nr": 4, "nz": 8} | changes))


def one_species(**changes):
    settings = {
        "diffusion": [0.7],
        "surface_diffusion": [0.2],
        "adsorption": [1.5],
        "desorption": [0.6],
        "feed": [0.0],
        "reaction": no_reaction,
        "velocity": 0.0,
    }
    return small(**(settings | changes))


def random_state(pore, seed=0):
    return torch.rand(pore.n_unknowns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spectrum(pore, x=None):
    at = torch.zeros(pore.n_unknowns, dtype=torch.float64) if x is None else x
    values = np.linalg.eigvals(pore.jacobian(at).toarray())
    return values[np.argsort(-values.real)]


def test_amounts_change_by_what_flows_in_minus_what_flows_out():
    pore = small(reaction=no_reaction)
    x = random_state(pore)
    change = (pore.cell_sizes * pore.rate(x)).reshape(3, -1).sum(1)
    torch.testing.assert_close(change, pore.net_inflow(x), rtol=0, atol=1e-12)


def test_feed_enters_with_the_mean_velocity_over_the_cross_section():
    pore = small(velocity=0.5)
    empty = torch.zeros(pore.n_unknowns, dtype=torch.float64)
    torch.testing.assert_close(pore.net_inflow(empty), 0.5 * math.pi * torch.tensor(pore.feed, dtype=torch.float64))


def test_a_closed_pore_keeps_the_totals_that_the_reaction_keeps():
    pore = small(velocity=0.0)
    x = random_state(pore)
    change = (pore.cell_sizes * pore.rate(x)).reshape(3, -1).sum(1)
    assert (change[0] + change[2]).item() == pytest.approx(0, abs=1e-12)
    assert (change[1] + change[2]).item() == pytest.approx(0, abs=1e-12)
    assert abs(change[0].item()) > 1e-3


def test_cells_fill_the_cylinder_and_its_wall():
    pore = CatalyticPore(nr=5, nz=7, radius=1.5, length=3.0)
    totals = pore.totals(torch.ones(pore.n_unknowns, dtype=torch.float64))
    expected = math.pi * 1.5**2 * 3.0 + 2 * math.pi * 1.5 * 3.0
    torch.testing.assert_close(totals, torch.full((3,), expected, dtype=torch.float64))


def test_without_sorption_each_species_bulk_and_wall_keep_their_own_amount():
    pore = small(adsorption=[0.0] * 3, desorption=[0.0] * 3, reaction=no_reaction, velocity=0.0)
    assert (np.abs(spectrum(pore)) < 1e-9).sum() == 6


@pytest.mark.parametrize("nz", [8, 16])
def test_axial_diffusion_has_its_closed_form(nz):
    pore = one_species(nz=nz, adsorption=[0.0], desorption=[0.0])
    dz = pore.length / nz
    rates = [-d * 4 / dz**2 * math.sin(math.pi * dz / (2 * pore.length)) ** 2 for d in (0.7, 0.2)]
    values = spectrum(pore)
    for rate in rates:
        assert np.abs(values - rate).min() < 1e-9
    assert rates[0] == pytest.approx(-0.7 * (math.pi / pore.length) ** 2, rel=1.0 / nz)


def test_radial_diffusion_tends_to_the_bessel_root():
    # The first radial mode of a closed disc decays at d * 3.8317^2; nz = 1 leaves nothing else.
    values = spectrum(one_species(nr=64, nz=1, adsorption=[0.0], desorption=[0.0]))
    assert np.abs(values + 0.7 * 3.8317059702**2).min() < 0.02


def test_one_closed_species_rests_where_sorption_balances():
    pore = one_species()
    balance = pore.state([1.0], [1.5 / 0.6])
    assert pore.rate(balance).abs().max() < 1e-12
    values = spectrum(pore)
    assert abs(values[0]) < 1e-10
    assert values[1].real < -1e-3
    result = stability(pore.flow(), balance, conserved=pore.cell_sizes[None])
    assert result.verdict == "normally stable"
    vector = torch.as_tensor(result.leading_vectors[:, 0].real.copy())
    torch.testing.assert_close(vector / vector[0], balance / balance[0])


def test_equal_species_have_equal_eigenvalues():
    one = spectrum(one_species())
    three = spectrum(
        one_species(
            diffusion=[0.7] * 3, surface_diffusion=[0.2] * 3, adsorption=[1.5] * 3, desorption=[0.6] * 3, feed=[0.0] * 3
        )
    )
    np.testing.assert_allclose(np.sort(three.real), np.sort(np.repeat(one.real, 3)), atol=1e-8)


@pytest.mark.parametrize("saturation", [None, [2.0, 3.0, 4.0]])
def test_jacobian_is_the_derivative(saturation):
    pore = small(saturation=saturation)
    x, v = random_state(pore), random_state(pore, 1) - 0.5
    h = 1e-6
    numeric = (pore.rate(x + h * v) - pore.rate(x - h * v)) / (2 * h)
    analytic = torch.as_tensor(pore.jacobian(x) @ v.numpy())
    assert torch.linalg.vector_norm(numeric - analytic) < 1e-7 * torch.linalg.vector_norm(analytic)


def test_a_full_wall_takes_nothing_and_a_huge_saturation_is_henry():
    henry, langmuir = small(), small(saturation=[1e12] * 3)
    x = random_state(henry)
    torch.testing.assert_close(langmuir.rate(x), henry.rate(x), rtol=1e-9, atol=1e-9)
    full = one_species(saturation=[2.0], desorption=[0.0])
    assert full.rate(full.state([1.0], [2.0])).abs().max() < 1e-12


def test_concentrations_stay_positive_on_the_way_to_equilibrium():
    from poise.dynamics import integrate

    pore, lowest = small(), math.inf
    x = pore.state([0.0] * 3, [0.0] * 3)
    for _ in range(8):
        x = integrate(pore.flow(), x, 0.5)
        lowest = min(lowest, x.min().item())
    assert lowest > -1e-9
    assert x.min() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "leading"),
    [
        ((6, 12), [-0.0549728, -0.0675095, -0.408807, -0.556622]),
        ((10, 20), [-0.0550893, -0.0677880, -0.408527, -0.556928]),
    ],
)
def test_throughflow_agrees_with_an_independent_computation(grid, leading):
    pore = CatalyticPore(*grid)
    x = pore.equilibrium(pore.state([0.5] * 3, [0.3] * 3))
    assert pore.rate(x).abs().max() < 1e-12
    result = stability(pore.flow(), x)
    assert result.verdict == "stable"
    np.testing.assert_allclose(result.eigenvalues[:4].real, leading, rtol=2e-6)
    assert np.abs(result.eigenvalues[:4].imag).max() == 0
    assert decay_rate(pore.flow(), x).rate == pytest.approx(result.rate, rel=1e-4)


def test_closed_pore_ends_at_the_detailed_balance_of_its_totals():
    pore = CatalyticPore(6, 12, velocity=0.0)
    start = pore.state([0.9, 0.3, 0.3], [0.3] * 3)
    x = pore.equilibrium(start)
    bulk, surface = pore.split(x)
    before, after = pore.totals(start), pore.totals(x)
    for i in (0, 1):
        assert (after[i] + after[2]).item() == pytest.approx((before[i] + before[2]).item(), rel=1e-9)
    assert bulk.std(dim=(1, 2)).max() < 1e-9
    expected = torch.tensor([0.573216, 0.312390, 0.358134], dtype=torch.float64)
    torch.testing.assert_close(surface[:, 0], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(2.0 * bulk[0, 0, 0], surface[0, 0], rtol=0, atol=1e-9)
    assert (surface[0] * surface[1] - 0.5 * surface[2]).abs().max() < 1e-11
    assert pore.reaction_energy(x) <= 1e-10
    assert stability(pore.flow(), x).verdict == "undecided"  # nobody said what is conserved
    result = stability(pore.flow(), x, conserved=2)
    assert (result.verdict, result.n_neutral) == ("normally stable", 2)
    np.testing.assert_allclose(result.eigenvalues[2:4].real, [-0.372336, -0.511773], rtol=2e-6)


def test_energy_condition_fails_for_a_reaction_that_feeds_itself():
    pore = small(reaction=lambda s: torch.stack([0 * s[0], 0 * s[1], s[2]]))
    assert pore.reaction_energy(pore.state([1.0] * 3, [1.0] * 3)) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="positive wall concentrations"):
        pore.reaction_energy(pore.state([1.0] * 3, [0.0] * 3))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nr": 0}, "nr and nz must be at least 1"),
        ({"radius": -1.0}, "radius must be positive"),
        ({"length": math.inf}, "length must be positive"),
        ({"diffusion": [1.0, 0.0, 1.0]}, r"diffusion must be positive; species 1 has 0"),
        ({"surface_diffusion": [1.0, 1.0, -1.0]}, "species 2"),
        ({"adsorption": [1.0, 1.0]}, "one entry per species, 3; got 2"),
        ({"desorption": [1.0, math.nan, 1.0]}, "species 1 has nan"),
        ({"saturation": [0.0, 1.0, 1.0]}, "saturation must be positive"),
        ({"feed": [-1.0, 0.0, 0.0]}, "feed must be at least 0; species 0"),
        ({"reaction": lambda s: s[:2]}, r"one rate per species and wall cell, \(3, 8\); got \(2, 8\)"),
        ({"velocity": -0.5}, "not be negative"),
        ({"velocity": [1.0, 2.0]}, r"shape \(4,\) or \(4, 9\)"),
        ({"velocity": np.linspace(1, 2, 9) * np.ones((4, 1))}, "divergence.*changes by up to 1"),
    ],
)
def test_bad_parameters(changes, words):
    with pytest.raises(ValueError, match=words):
        small(**changes)


def test_velocities_of_annuli_equal_the_profile_they_average():
    pore = small()
    r = np.linspace(0, 1, 5)
    annuli = np.diff(r**2 - r**4 / 2) * 2 * 0.5 / np.diff(r**2)
    same = small(velocity=np.repeat(annuli[:, None], 9, axis=1))
    x = random_state(pore)
    torch.testing.assert_close(same.rate(x), pore.rate(x))


def test_bad_states():
    pore = small()
    with pytest.raises(ValueError, match=r"bulk must be finite and not negative; species 1"):
        pore.state([1.0, -1.0, 0.0], [0.0] * 3)
    with pytest.raises(ValueError, match="surface must have shape"):
        pore.state([1.0] * 3, [0.0] * 2)
    with pytest.raises(ValueError, match="not an equilibrium: the residual is"):
        stability(pore.flow(), random_state(pore))
    with pytest.raises(ValueError, match="must not be negative"):
        reversible_reaction(-1.0)
