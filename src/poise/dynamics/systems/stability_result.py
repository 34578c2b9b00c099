"""The stability of the linearisation at an equilibrium, and its report."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Complex, Float

from poise.dynamics.systems.non_normality import NonNormality
from poise.dynamics.systems.smoothness import Smoothness
from poise.report import Code, Figure, Report, Table, Text

Verdict = Literal["stable", "normally stable", "unstable", "undecided"]

_LARGE_GROWTH = 10.0


@dataclass(frozen=True, slots=True)
class Stability:
    """The stability of the linearisation at an equilibrium.

    Attributes:
        verdict: ``"stable"`` (attracts at an exponential rate), ``"normally stable"`` (the same towards a manifold of
            equilibria whose dimension was supplied), ``"unstable"``, or ``"undecided"``; ``notes`` give the reason.
        eigenvalues: the fastest growing first, of shape (k,).
        growth_rates: their exponential rates: real parts (flow) or logarithms of absolute values (map).
        n_neutral: how many neither grow nor decay, of those computed.
        rate: rate at which the slowest decaying direction decays, per step or unit of time; negative if one grows;
            ``nan`` if all computed eigenvalues are neutral.
        leading_vectors: right eigenvectors of ``eigenvalues``, of shape (n, k).
        residuals: norms of ``J v - lambda v``, of shape (k,).
        tolerance: growth rates up to this count as neutral.
        non_normality: growth before decay; ``None`` where it was not computed.
        smoothness: Jacobian products against finite differences.
        per: unit of time of the rates.
        notes: where local analysis does not apply, and what was not seen.
    """

    verdict: Verdict
    eigenvalues: Complex[np.ndarray, " k"]
    growth_rates: Float[np.ndarray, " k"]
    n_neutral: int
    rate: float
    leading_vectors: Complex[np.ndarray, "n k"]
    residuals: Float[np.ndarray, " k"]
    tolerance: float
    non_normality: NonNormality | None
    smoothness: Smoothness
    per: str
    notes: list[str] = field(default_factory=list)

    @property
    def abscissa(self) -> float:
        """Largest growth rate; of a flow, the spectral abscissa."""
        return float(self.growth_rates[0])

    @property
    def radius(self) -> float:
        """The factor by which the fastest growing direction grows per step or unit of time; of a map, its radius."""
        # A stiff flow may have a rate whose exponential is no float.
        return math.exp(self.abscissa) if self.abscissa < math.log(sys.float_info.max) else math.inf

    def report(self) -> Report:
        """Return the report: the verdict in words, eigenvalues, growth before decay, and where the analysis ends."""
        blocks: list[Text | Table | Figure | Code] = [_eigenvalue_table(self), _growth_figure(self)]
        if self.non_normality is not None:
            blocks.append(_non_normality_table(self))
        limits = [
            "Eigenvalues describe small perturbations only; they do not show how small.",
            *self.notes,
            *_transient_note(self),
        ]
        blocks.append(Text("\n".join(f"- {limit}" for limit in limits), title="Where this analysis ends"))
        meta = {"per": self.per, "tolerance": self.tolerance, "n_neutral": self.n_neutral}
        return Report("Stability of an equilibrium", _summary(self), blocks=blocks, meta=meta, verdict=self.verdict)


def _summary(r: Stability) -> str:
    if r.verdict == "unstable":
        growing = int((r.growth_rates > r.tolerance).sum())
        return (
            f"The equilibrium repels: {growing} of the computed directions grow, the fastest at rate {r.abscissa:.4g} "
            f"per {r.per} (doubling in {math.log(2) / r.abscissa:.3g})."
        )
    if r.verdict == "undecided":
        return "The linearisation does not decide. " + " ".join(r.notes[:1])
    where = "The equilibrium attracts"
    if r.verdict == "normally stable":
        where = f"Nearby states go to an equilibrium near by ({r.n_neutral} neutral directions, as conserved)"
    half = math.log(2) / r.rate if r.rate > 0 else math.nan
    return f"{where}: the slowest perturbation decays at rate {r.rate:.4g} per {r.per} (half in {half:.3g})."


def _eigenvalue_table(r: Stability) -> Table:
    rows = [
        [float(value.real), float(value.imag), abs(value), float(rate), float(residual)]
        for value, rate, residual in zip(r.eigenvalues, r.growth_rates, r.residuals, strict=True)
    ]
    columns = ["real part", "imaginary part", "absolute value", f"growth rate per {r.per}", "residual"]
    return Table("Leading eigenvalues", columns, rows, f"Growth rates within {r.tolerance:.1e} of 0 count as neutral.")


def _growth_figure(r: Stability) -> Figure:
    import plotly.graph_objects as go  # here, because it takes long and only figures need it

    figure = go.Figure(go.Scatter(x=r.eigenvalues.real, y=r.eigenvalues.imag, mode="markers", name="eigenvalues"))
    if r.per == "step":
        angle = np.linspace(0, 2 * math.pi, 100)
        figure.add_scatter(x=np.cos(angle), y=np.sin(angle), mode="lines", name="stability boundary")
    else:
        height = max(float(np.abs(r.eigenvalues.imag).max()), 1.0)
        figure.add_scatter(x=[0, 0], y=[-height, height], mode="lines", name="stability boundary")
    figure.update_layout(xaxis_title="real part", yaxis_title="imaginary part")
    side = "inside the unit circle" if r.per == "step" else "left of 0"
    inside = int((r.growth_rates < -r.tolerance).sum())
    alt = f"{inside} of {len(r.growth_rates)} leading eigenvalues lie {side}, {r.n_neutral} on the boundary."
    return Figure("Leading eigenvalues in the complex plane", figure, alt, f"What lies {side} decays.")


def _non_normality_table(r: Stability) -> Table:
    n = r.non_normality
    assert n is not None
    rows: list[list[object]] = [
        ["largest singular value of the Jacobian", n.sigma_max],
        ["numerical abscissa (fastest growth at the start of a flow)", n.numerical_abscissa],
        ["largest amplification before decay, at least", n.transient_growth],
    ]
    return Table("Growth before decay", ["quantity", "value"], rows, "In the Euclidean norm of the state.")


def _transient_note(r: Stability) -> list[str]:
    n = r.non_normality
    if r.verdict == "unstable":
        return []
    if n is None or n.transient_growth is None:
        return ["How far perturbations grow before they decay was not computed for a system of this size."]
    if n.transient_growth <= _LARGE_GROWTH:
        return []
    return [
        f"Some perturbations grow {n.transient_growth:.3g}-fold before they decay (the Jacobian is not normal): the "
        "basin in which the verdict holds may be smaller by that factor."
    ]
