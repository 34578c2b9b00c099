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
from poise.report import Code, Figure, Table, Text
from poise.report.charts import line_chart
from poise.studies.study import Budget, Claim, ClaimVerdict, Measured, Measurement, Paper, Progress, Study

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
    pore = CatalyticPore(
        *RANDOM_GRID,
        diffusion=around(usual.diffusion).tolist(),
        surface_diffusion=around(usual.surface_diffusion).tolist(),
        adsorption=adsorption.tolist(),
        desorption=desorption.tolist(),
        reaction=reversible_reaction(forward, backward),
        velocity=0.0,
    )
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


def _judge_rate(n: Mapping[str, float]) -> ClaimVerdict:
    return "reproduced" if n["stable"] == n["grids"] and n["worst_error"] <= 0.02 else "refuted"


def _judge_manifold(n: Mapping[str, float]) -> ClaimVerdict:
    right = n["fewest_neutral"] == n["most_neutral"] == 2 and n["normally_stable"] == n["grids"]
    return "reproduced" if right and n["worst_error"] <= 0.05 else "refuted"


def _judge_fate(n: Mapping[str, float]) -> ClaimVerdict:
    return "reproduced" if n["foretold"] == n["runs"] else "refuted"


def _judge_condition(n: Mapping[str, float]) -> ClaimVerdict:
    return "reproduced" if n["condition_holds"] == n["normally_stable"] == n["draws"] else "refuted"


def _judge_baseline(n: Mapping[str, float]) -> ClaimVerdict:
    if n["best_single"] > n["worst_eigenvector"]:
        return "reproduced"
    return "partly" if n["median_single"] > n["worst_eigenvector"] else "refuted"


CLAIMS = (
    Claim(
        "rate",
        "With throughflow the equilibrium attracts at an exponential rate, the one its spectrum says",
        "theorem; no numbers",
        "on every grid: verdict stable, and the rate fitted to a simulated perturbation along the slowest direction "
        "within 2 % of the spectral abscissa; else refuted",
        _judge_rate,
    ),
    Claim(
        "manifold",
        "In a closed pore equilibria form a manifold and are normally stable: nearby states go to one of them",
        "theorem; no numbers",
        "exactly 2 neutral eigenvalues (two conserved totals), the rest decay, and the fitted rate is within 5 %; else "
        "refuted",
        _judge_manifold,
    ),
    Claim(
        "fate",
        "Stability can be lost: the sign of the abscissa tells whether a small start grows",
        "discussed, no numbers",
        "for every strength of an autocatalytic source the run leaves zero if and only if the abscissa is positive; "
        "else refuted",
        _judge_fate,
    ),
    Claim(
        "condition",
        "Detailed balance suffices for normal stability, whatever the parameters (our energy condition)",
        "a condition on the parameters; ours is derived here",
        "in every random closed pore at detailed balance the reaction's energy form has no positive eigenvalue and the "
        "spectrum is normally stable; else refuted",
        _judge_condition,
    ),
    Claim(
        "baseline",
        "Our use of it: the spectrum gives the rate better than one simulated random perturbation",
        "-",
        "reproduced if every random perturbation errs more than the worst spectrum, partly if half of them do",
        _judge_baseline,
    ),
)


def measure(budget: Budget, seeds: Sequence[int], progress: Progress) -> Measurement:
    """Run all parts."""
    grids = GRIDS[budget]
    open_cases, closed_cases = [], []
    for i, grid in enumerate(grids):
        progress(0.4 * i / len(grids), f"equilibria on a grid of {grid[0]} x {grid[1]}")
        open_cases.append(throughflow(grid))
        closed_cases.append(closed(grid))
    progress(0.4, "single random perturbations")
    singles = [one_random_perturbation(open_cases[0], seed) for seed in seeds]
    progress(0.5, "random pores at detailed balance")
    balances = [detailed_balance(seed) for seed in seeds]
    progress(0.6, "autocatalysis")
    fates = [fate(grids[0], gamma) for gamma in GAMMAS[budget]]
    curve = np.linspace(0.0, max(GAMMAS[budget]), 11)
    abscissae = [abscissa_at_zero(grids[0], float(gamma)) for gamma in curve]
    progress(1.0, "done")
    claims = {
        "rate": _rate_claim(open_cases),
        "manifold": _manifold_claim(closed_cases),
        "fate": _fate_claim(fates),
        "condition": _condition_claim(balances),
        "baseline": _baseline_claim(open_cases, singles),
    }
    blocks: list[Text | Table | Figure | Code] = [
        _case_table(open_cases + closed_cases),
        _fate_figure(fates, curve, abscissae),
        _fate_table(fates),
        _single_table(singles, seeds),
        _wall_figure(open_cases[-1]),
        *open_cases[-1].spectrum.report().blocks,
    ]
    return Measurement(
        claims, _summary(open_cases, closed_cases, fates, singles), blocks, _picture(fates, curve, abscissae)
    )


def _summary(opened: Sequence[Case], shut: Sequence[Case], fates: Sequence[Fate], singles: Sequence[float]) -> str:
    last = opened[-1]
    return (
        f"The pore with throughflow returns at rate {last.spectrum.rate:.5f}; a simulation along its slowest direction "
        f"measured {last.fit.rate:.5f}. The closed pore has {shut[-1].spectrum.n_neutral} neutral directions and is "
        f"{shut[-1].spectrum.verdict}. The abscissa told {sum(f.foretold for f in fates)} of {len(fates)} fates of "
        f"autocatalysis. A single random perturbation misses the rate by {min(singles):.0%} to {max(singles):.0%}."
    )


def _rate_claim(cases: Sequence[Case]) -> Measured:
    numbers = {
        "grids": len(cases),
        "stable": sum(case.spectrum.verdict == "stable" for case in cases),
        "worst_error": max(case.error for case in cases),
    }
    rates = ", ".join(f"{case.fit.rate:.5f} (spectrum {case.spectrum.rate:.5f})" for case in cases)
    return Measured(f"rates {rates}", numbers)


def _manifold_claim(cases: Sequence[Case]) -> Measured:
    neutral = [case.spectrum.n_neutral for case in cases]
    numbers = {
        "grids": len(cases),
        "fewest_neutral": min(neutral),
        "most_neutral": max(neutral),
        "normally_stable": sum(case.spectrum.verdict == "normally stable" for case in cases),
        "worst_error": max(case.error for case in cases),
    }
    words = f"{min(neutral)} to {max(neutral)} neutral, rate off by at most {numbers['worst_error']:.2g}"
    return Measured(words, numbers)


def _fate_claim(fates: Sequence[Fate]) -> Measured:
    told = sum(f.foretold for f in fates)
    words = ", ".join(f"{f.gamma:g}: {f.abscissa:+.4f}" for f in fates)
    return Measured(
        f"{told} of {len(fates)} told; abscissa by strength {words}", {"runs": len(fates), "foretold": told}
    )


def _condition_claim(balances: Sequence[tuple[float, Stability]]) -> Measured:
    numbers = {
        "draws": len(balances),
        "condition_holds": sum(energy <= 1e-9 for energy, _ in balances),
        "normally_stable": sum(spectrum.verdict == "normally stable" for _, spectrum in balances),
    }
    return Measured(f"{numbers['normally_stable']} of {numbers['draws']} random pores normally stable", numbers)


def _baseline_claim(cases: Sequence[Case], singles: Sequence[float]) -> Measured:
    numbers = {
        "worst_eigenvector": max(case.error for case in cases),
        "best_single": min(singles),
        "median_single": float(np.median(singles)),
    }
    words = (
        f"spectrum off by {numbers['worst_eigenvector']:.1e}, single runs by {min(singles):.2g} to {max(singles):.2g}"
    )
    return Measured(words, numbers)


def _case_table(cases: Sequence[Case]) -> Table:
    rows = []
    for case in cases:
        leading = ", ".join(f"{v.real:.6f}" for v in case.spectrum.eigenvalues[:4])
        low, high = case.fit.ci
        kind = "closed" if case.spectrum.n_neutral else "throughflow"
        row = [kind, f"{case.grid[0]} x {case.grid[1]}", len(case.x), case.spectrum.verdict, leading]
        rows.append([*row, case.spectrum.rate, case.fit.rate, f"[{low:.6f}, {high:.6f}]", float(case.x.min())])
    columns = [
        "pore", "grid", "unknowns", "verdict", "leading eigenvalues", "rate of the spectrum", "rate measured",
        "interval", "lowest concentration",
    ]  # fmt: skip
    return Table("Equilibria", columns, rows, "The rate is measured by simulating a small perturbation.")


def _fate_table(fates: Sequence[Fate]) -> Table:
    rows = [[f.gamma, f.abscissa, f.largest, "left" if f.largest > LEFT else "returned"] for f in fates]
    columns = ["strength", "abscissa at zero", f"largest concentration at time {LONG:.0f}", "fate"]
    return Table("Autocatalysis", columns, rows, f"Every concentration starts at {SMALL:g}.")


def _single_table(singles: Sequence[float], seeds: Sequence[int]) -> Table:
    rows = [[seed, error] for seed, error in zip(seeds, singles, strict=True)]
    caption = "Fitted over times 18 to 30: faster modes are still there, so the rate comes out too high."
    return Table(
        "One random perturbation instead of the spectrum", ["seed", "relative error of the rate"], rows, caption
    )


def _wall_figure(case: Case) -> Figure:
    z = (np.arange(case.pore.nz) + 0.5) * case.pore.length / case.pore.nz
    surface = case.pore.split(case.x)[1].numpy()
    series = {f"A{i + 1}": (z, surface[i]) for i in range(len(surface))}
    return line_chart("What sits on the wall at equilibrium", series, "distance from the inflow", "wall concentration")


def _fate_figure(fates: Sequence[Fate], curve: np.ndarray, abscissae: Sequence[float]) -> Figure:
    zero = next((g for g, a in zip(curve, abscissae, strict=True) if a > 0), None)
    where = "never positive" if zero is None else f"positive from strength {zero:g} on"
    alt = f"The abscissa rises with the strength of autocatalysis and is {where}; runs above zero left the empty state."
    caption = "Line: largest real part of the spectrum of the empty pore. Points: where simulations ended."
    return Figure("Where stability is lost", _picture(fates, curve, abscissae), alt, caption)


def _picture(fates: Sequence[Fate], curve: np.ndarray, abscissae: Sequence[float]) -> go.Figure:
    figure = go.Figure(go.Scatter(x=curve, y=abscissae, mode="lines", name="spectral abscissa"))
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
    claims=CLAIMS,
    seeds={"tiny": 2, "default": 5, "full": 20},
    measure=measure,
)
