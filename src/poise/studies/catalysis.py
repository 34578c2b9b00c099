"""Steady states of a catalytic pore: do they attract, how fast, and where does that end.

The paper proves it without numbers. Here a discretised pore is brought to its equilibria, their spectra are computed,
and simulations that know nothing of the spectra say whether these told the truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
import torch
from scipy.stats import gmean
from torch import Tensor

from poise.dynamics import (
    CatalyticPore,
    RateFit,
    Stability,
    decay_rate,
    integrate,
    reversible_reaction,
    stability,
)
from poise.report import Figure, Table, line_chart
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.bootstrap import bootstrap_over_seeds
from poise.studies.kit.grid import run_each, stage
from poise.studies.kit.rules import above, at_most, equal_to, holds_in
from poise.studies.kit.tables import record_table

Grid = tuple[int, int]
GRIDS: Mapping[Budget, tuple[Grid, ...]] = {
    "tiny": ((3, 6), (4, 8)),
    "default": ((6, 12), (10, 20)),
    "full": ((6, 12), (10, 20), (14, 28)),
}
GAMMAS: Mapping[Budget, tuple[float, ...]] = {
    "tiny": (0.2, 0.8),
    "default": (0.2, 0.8, 1.5, 2.5),
    "full": (0.2, 0.3, 0.4, 0.5, 0.8, 1.5, 2.5),
}
"""Strengths of the autocatalytic source whose fate is simulated."""
PORES: Mapping[Budget, int] = {"tiny": 2, "default": 40, "full": 80}
"""How many random pores: 36 are the fewest that can show that something holds in nine of ten."""
RANDOM_GRID: Grid = (4, 8)
LONG, SMALL = 200.0, 1e-3
"""How long the fate of a small start is followed, and how small it is."""
LEFT, GONE = 1.0, 1e-4
"""Largest concentration at the end above which a run has left zero, and below which it has returned."""


@dataclass(frozen=True, slots=True)
class Case:
    """An equilibrium, what its spectrum says, and how fast a perturbation along its slowest direction decayed."""

    grid: Grid
    pore: CatalyticPore
    x: Tensor
    spectrum: Stability
    fit: RateFit

    @property
    def error(self) -> float:
        """Relative difference of the measured and the predicted rate."""
        return abs(self.fit.rate / self.spectrum.rate - 1.0)


@dataclass(frozen=True, slots=True)
class Fate:
    """Autocatalysis of one strength: what the spectrum at zero predicts and where a small start ended."""

    gamma: float
    abscissa: float
    largest: float

    @property
    def foretold(self) -> bool:
        """Whether the sign of the abscissa told the end."""
        return self.largest > LEFT if self.abscissa > 0 else self.largest < GONE


def throughflow(grid: Grid) -> Case:
    """Return the pore with inflow at its equilibrium."""
    pore = CatalyticPore(*grid)
    x = pore.equilibrium(pore.state((0.5, 0.5, 0.5), (0.3, 0.3, 0.3)))
    flow = pore.flow()
    return Case(grid, pore, x, stability(flow, x), decay_rate(flow, x))


def closed(grid: Grid) -> Case:
    """Return the closed pore at the equilibrium that its totals choose."""
    pore = CatalyticPore(*grid, velocity=0.0)
    x = pore.equilibrium(pore.state((0.9, 0.3, 0.3), (0.3, 0.3, 0.3)))
    flow = pore.flow()
    return Case(grid, pore, x, stability(flow, x, conserved=conserved_totals(pore)), decay_rate(flow, x))


def conserved_totals(pore: CatalyticPore) -> Tensor:
    """Return the gradients of what A1 + A2 <-> A3 conserves: the amounts of A1 and A3, and of A2 and A3."""
    sizes = pore.cell_sizes.reshape(3, -1)
    kept = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]], dtype=torch.float64)
    return (kept[:, :, None] * sizes).reshape(2, -1)


def random_balance(seed: int) -> tuple[CatalyticPore, Tensor]:
    """Return a closed pore of random parameters (ten times smaller to larger than usual) at detailed balance."""
    rng, usual = np.random.default_rng(seed), CatalyticPore()

    def around(values: Sequence[float]) -> np.ndarray:
        return np.asarray(values) * 10.0 ** rng.uniform(-1, 1, len(values))

    (forward, backward), adsorption, desorption = around((1, 0.5)), around(usual.adsorption), around(usual.desorption)
    diffusion, surface_diffusion = around(usual.diffusion), around(usual.surface_diffusion)
    spread = (diffusion.tolist(), surface_diffusion.tolist(), adsorption.tolist(), desorption.tolist())
    reaction = reversible_reaction(forward, backward)
    pore = CatalyticPore(*RANDOM_GRID, usual.radius, usual.length, *spread, reaction=reaction, velocity=0.0)
    s1, s2 = around((0.5, 0.5))
    surface = np.array([s1, s2, s1 * s2 * forward / backward])
    return pore, pore.state((surface * desorption / adsorption).tolist(), surface.tolist())


def detailed_balance(seed: int) -> tuple[float, Stability]:
    """Return the energy condition and the spectrum at a random detailed balance."""
    pore, x = random_balance(seed)
    return pore.reaction_energy(x), stability(pore.flow(), x, conserved=conserved_totals(pore))


def autocatalytic(grid: Grid, gamma: float) -> CatalyticPore:
    """Return a pore without feed in which A3 makes more of itself and decays into A1 and A2."""

    def reaction(s: Tensor) -> Tensor:
        decay = 0.2 * s[2]
        return torch.stack([decay, decay, -decay + gamma * s[2] * (1 - s[2] / 5)])

    return CatalyticPore(*grid, feed=(0.0, 0.0, 0.0), reaction=reaction)


def abscissa_at_zero(grid: Grid, gamma: float) -> float:
    """Return the spectral abscissa of the empty pore."""
    pore = autocatalytic(grid, gamma)
    return stability(pore.flow(), torch.zeros(pore.n_unknowns, dtype=torch.float64)).abscissa


def fate(grid: Grid, gamma: float) -> Fate:
    """Return what becomes of a nearly empty pore."""
    pore = autocatalytic(grid, gamma)
    end = integrate(pore.flow(), pore.state([SMALL] * 3, [SMALL] * 3), LONG, rtol=1e-7)
    return Fate(gamma, abscissa_at_zero(grid, gamma), float(end.max()))


def one_random_perturbation(case: Case, seed: int) -> float:
    """Return the relative error of the rate that a single simulated perturbation gives."""
    direction = torch.randn(len(case.x), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return abs(decay_rate(case.pore.flow(), case.x, direction, t_max=30.0).rate / case.spectrum.rate - 1.0)


# --- the experiment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Results:
    """What came out."""

    opened: list[Case]  # pores with throughflow, the coarsest grid first
    shut: list[Case]  # closed pores, on the same grids
    balances: list[tuple[float, Stability]]  # energy condition and spectrum of random detailed balances
    fates: list[Fate]  # of autocatalysis of every strength
    singles: Mapping[int, float]  # by seed, the error of the rate from one random perturbation
    abscissae: Mapping[float, float]  # strengths in even steps, and the spectral abscissa of the empty pore at each


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Run all parts."""
    grids, gammas = GRIDS[budget], GAMMAS[budget]
    opened = [*run_each(throughflow, grids, stage(progress, "throughflow, grid", 0, 0.2)).values()]
    shut = [*run_each(closed, grids, stage(progress, "closed, grid", 0.2, 0.4)).values()]
    singles = {seed: one_random_perturbation(opened[0], seed) for seed in seeds}
    progress(0.5, "single random perturbations")
    balances = [detailed_balance(seed) for seed in range(seeds[0], seeds[0] + PORES[budget])]
    progress(0.6, "random pores at detailed balance")
    fates = [fate(grids[0], gamma) for gamma in gammas]
    curve = {float(gamma): abscissa_at_zero(grids[0], float(gamma)) for gamma in np.linspace(0.0, max(gammas), 11)}
    return Results(opened, shut, balances, fates, singles, curve)


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "rate",
    "With throughflow the equilibrium attracts at an exponential rate, the one its spectrum says",
    paper="theorem; no numbers",
    protocol="Stable: grids on which that is the verdict. Worst error: relative distance of the rate fitted to a "
    "simulated perturbation along the slowest direction from the spectral abscissa.",
    reproduced=equal_to("stable", "grids") & at_most("worst_error", 0.02),
    without_seeds="no seeds enter.",
)
def rate(results: Results) -> Measured:
    cases = results.opened
    rates = ", ".join(f"{case.fit.rate:.5f} (spectrum {case.spectrum.rate:.5f})" for case in cases)
    stable, worst = sum(case.spectrum.verdict == "stable" for case in cases), max(case.error for case in cases)
    return Measured(f"rates {rates}", {"grids": len(cases), "stable": stable, "worst_error": worst})


@claim(
    "manifold",
    "In a closed pore equilibria form a manifold and are normally stable: nearby states go to one of them",
    paper="theorem; no numbers",
    protocol="Fewest and most neutral: neutral eigenvalues over grids, of which two conserved totals make 2. Normally "
    "stable: grids on which the rest decay. Worst error: of the fitted rate, relative.",
    reproduced=equal_to("fewest_neutral", 2)
    & equal_to("most_neutral", 2)
    & equal_to("normally_stable", "grids")
    & at_most("worst_error", 0.05),
    without_seeds="no seeds enter.",
)
def manifold(results: Results) -> Measured:
    neutral = [case.spectrum.n_neutral for case in results.shut]
    worst = max(case.error for case in results.shut)
    numbers = {
        "grids": len(neutral),
        "fewest_neutral": min(neutral),
        "most_neutral": max(neutral),
        "normally_stable": sum(case.spectrum.verdict == "normally stable" for case in results.shut),
        "worst_error": worst,
    }
    return Measured(f"{min(neutral)} to {max(neutral)} neutral, rate off by at most {worst:.2g}", numbers)


@claim(
    "fate",
    "Stability can be lost: the sign of the abscissa tells whether a small start grows",
    paper="discussed, no numbers",
    protocol="Foretold: runs, one for each strength of an autocatalytic source, that leave zero where the abscissa is "
    "positive and return where it is not.",
    reproduced=equal_to("foretold", "runs"),
    without_seeds="no seeds enter.",
)
def fate_foretold(results: Results) -> Measured:
    fates, foretold = results.fates, sum(f.foretold for f in results.fates)
    words = ", ".join(f"{f.gamma:g}: {f.abscissa:+.4f}" for f in fates)
    numbers = {"runs": len(fates), "foretold": foretold}
    return Measured(f"{foretold} of {len(fates)} told; abscissa by strength {words}", numbers)


@claim(
    "condition",
    "Detailed balance suffices for normal stability, whatever the parameters (our energy condition)",
    paper="a condition on the parameters; ours is derived here",
    protocol="Random closed pores at detailed balance (draws): in how many the reaction's energy form has no positive "
    "eigenvalue (condition holds), and how many are normally stable; as told: those of which both hold.",
    reproduced=equal_to("condition_holds", "draws")
    & equal_to("normally_stable", "draws")
    & holds_in(equal_to("as_told", 1), 0.9, unit="pores"),
)
def condition(results: Results) -> Measured:
    draws = len(results.balances)
    holds = np.array([energy <= 1e-9 for energy, _ in results.balances])
    stable = np.array([spectrum.verdict == "normally stable" for _, spectrum in results.balances])
    numbers = {"draws": draws, "condition_holds": holds.sum(), "normally_stable": stable.sum()}
    return Measured(f"{stable.sum()} of {draws} random pores normally stable", numbers, {"as_told": holds & stable})


@claim(
    "baseline",
    "Our use of it: the spectrum gives the rate better than one simulated random perturbation",
    paper="-",
    protocol="Relative errors of the rate: from a spectrum, the worst of all grids (worst eigenvector), and from one "
    "random perturbation, the best, the median and the geometric mean (single) of the seeds.",
    reproduced=above("best_single", "worst_eigenvector") & above("single", "worst_eigenvector"),
    refuted=at_most("median_single", "worst_eigenvector") & at_most("single", "worst_eigenvector"),
    over_seeds=["single"],
)
def baseline(results: Results) -> Measured:
    worst, singles = max(case.error for case in results.opened), list(results.singles.values())
    words = f"spectrum off by {worst:.1e}, single runs by {min(singles):.2g} to {max(singles):.2g}"
    single, interval = bootstrap_over_seeds(gmean, singles, positive=True)
    medians = {"best_single": min(singles), "median_single": np.median(singles), "single": single}
    return Measured(words, {"worst_eigenvector": worst, **medians}, intervals={"single": interval})


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figures, tables and summary together."""
    last, shut, fates, singles = results.opened[-1], results.shut[-1], results.fates, results.singles.values()
    summary = (
        f"The pore with throughflow returns at rate {last.spectrum.rate:.5f}; a simulation along its slowest direction "
        f"measured {last.fit.rate:.5f}. The closed pore has {shut.spectrum.n_neutral} neutral directions and is "
        f"{shut.spectrum.verdict}. The abscissa told {sum(f.foretold for f in fates)} of {len(fates)} fates of "
        f"autocatalysis. A single random perturbation misses the rate by {min(singles):.0%} to {max(singles):.0%}."
    )
    columns = ["strength", "abscissa at zero", f"largest concentration at time {LONG:.0f}", "fate"]
    rows = [[f.gamma, f.abscissa, f.largest, "left" if f.largest > LEFT else "returned"] for f in fates]
    picture = _picture(results)
    return Presentation(
        summary,
        [
            _case_table([*results.opened, *results.shut]),
            _fate_figure(results, picture),
            Table("Autocatalysis", columns, rows, f"Every concentration starts at {SMALL:g}."),
            Table(
                "One random perturbation instead of the spectrum",
                ["seed", "relative error of the rate"],
                list(results.singles.items()),
                "Fitted over times 18 to 30: faster modes are still there, so the rate comes out too high.",
            ),
            _wall_figure(last),
            *last.spectrum.report().blocks,
        ],
        picture,
    )


def _case_table(cases: Sequence[Case]) -> Table:
    rows = [
        {
            "pore": "closed" if case.spectrum.n_neutral else "throughflow",
            "grid": f"{case.grid[0]} x {case.grid[1]}",
            "unknowns": len(case.x),
            "verdict": case.spectrum.verdict,
            "leading eigenvalues": ", ".join(f"{v.real:.6f}" for v in case.spectrum.eigenvalues[:4]),
            "rate of the spectrum": case.spectrum.rate,
            "rate measured": case.fit.rate,
            "interval": "[{:.6f}, {:.6f}]".format(*case.fit.ci),
            "lowest concentration": float(case.x.min()),
        }
        for case in cases
    ]
    return record_table("Equilibria", rows, "The rate is measured by simulating a small perturbation.")


def _wall_figure(case: Case) -> Figure:
    z = (np.arange(case.pore.nz) + 0.5) * case.pore.length / case.pore.nz
    surface = case.pore.split(case.x)[1].numpy()
    series = {f"A{i + 1}": (z, surface[i]) for i in range(len(surface))}
    return line_chart("What sits on the wall at equilibrium", series, "distance from the inflow", "wall concentration")


def _fate_figure(results: Results, picture: go.Figure) -> Figure:
    zero = next((gamma for gamma, abscissa in results.abscissae.items() if abscissa > 0), None)
    where = "never positive" if zero is None else f"positive from strength {zero:g} on"
    alt = f"The abscissa rises with the strength of autocatalysis and is {where}; runs above zero left the empty state."
    caption = "Line: largest real part of the spectrum of the empty pore. Points: where simulations ended."
    return Figure("Where stability is lost", picture, alt, caption)


def _picture(results: Results) -> go.Figure:
    curve, fates = results.abscissae, results.fates
    figure = go.Figure(go.Scatter(x=[*curve], y=[*curve.values()], mode="lines", name="spectral abscissa"))
    for name, symbol, chosen in (
        ("run returned to zero", "circle", [f for f in fates if f.largest < GONE]),
        ("run left zero", "x", [f for f in fates if f.largest > LEFT]),
    ):
        x, y = [f.gamma for f in chosen], [f.abscissa for f in chosen]
        figure.add_scatter(x=x, y=y, mode="markers", marker={"symbol": symbol, "size": 11}, name=name)
    figure.add_hline(y=0.0, line_dash="dot")
    return figure.update_layout(xaxis_title="strength of autocatalysis", yaxis_title="spectral abscissa at zero")


STUDY = Study(
    slug="catalysis",
    title="Are steady states of a catalytic pore attracting, and how fast?",
    room="dynamics",
    paper=Paper(
        "Stability Analysis for a Class of Heterogeneous Catalysis Models", "Gesse, Koehne and Saal", 2023, "2308.01049"
    ),
    seeds={"tiny": 2, "default": 5, "full": 20},
    experiment=experiment,
    claims=(rate, manifold, fate_foretold, condition, baseline),
    present=present,
)
