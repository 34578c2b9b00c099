"""Whether an equilibrium of a map or flow attracts, how fast, and in which directions it does not."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from poise.dynamics.systems.flow import Flow
from poise.dynamics.systems.leading_eigenvalues import LeadingEigenvalues, leading_eigenvalues
from poise.dynamics.systems.map import Map
from poise.dynamics.systems.non_normality import (
    TRANSIENT_LIMIT,
    NonNormality,
    non_normality_of_flow,
    non_normality_of_map,
    non_normality_of_operator,
)
from poise.dynamics.systems.smoothness import Smoothness, check_smoothness
from poise.dynamics.systems.stability_result import Stability, Verdict
from poise.dynamics.systems.system import System, check_state

_NOT_AN_EQUILIBRIUM = 1e-6
_NEUTRAL = 1e-8


def stability(
    system: System,
    x_star: Float[Tensor, " n"],
    k: int = 6,
    conserved: int | Float[Tensor, "laws n"] | None = None,
) -> Stability:
    """Say whether an equilibrium attracts.

    An eigenvalue is neutral if its growth rate is at most ``max(1e-8, 10 * residual)`` in size (in float32, 1e-5
    takes the place of 1e-8).

    Args:
        system: a ``Map`` or ``Flow``.
        x_star: a fixed point or equilibrium, of shape (n,); see :func:`find_fixed_point`.
        k: how many leading eigenvalues to return, neutral ones included; all where there are fewer.
        conserved: dimension of the manifold of equilibria that conservation laws or symmetries make, or the gradients
            of the laws at ``x_star``, of shape (laws, n). Without it, neutral directions leave the verdict undecided.

    Raises:
        ValueError: if ``x_star`` is not an equilibrium, ``k`` is out of range, a law is not conserved, or the system
            gives two answers for one state.

    References:
        Gesse, Koehne and Saal (2023), arXiv:2308.01049 (normal stability); Trefethen and Embree (2005). Spectra and
        Pseudospectra (non-normal growth).
    """
    x = check_state("x_star", x_star)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    k = min(k, x.numel())
    _check_equilibrium(system, x)
    laws = _dimension(conserved, system, x)
    smoothness = check_smoothness(system, x, torch.Generator().manual_seed(0))
    if not math.isfinite(smoothness.kink + smoothness.mismatch):
        raise ValueError(
            "the derivative at x_star is not finite, for example of a square root at 0 (the second moment of Adam at a "
            "minimum: hold it)"
        )
    found = leading_eigenvalues(system, x, k)
    growth = system.growth_rates(found.values)
    tolerance = _tolerance(x, found, growth)
    neutral = np.abs(growth) <= tolerance
    verdict, notes = _verdict(found, growth, neutral, tolerance, laws, system)
    if not smoothness.smooth:
        verdict = "undecided"
        notes.insert(0, _not_smooth(smoothness))
    moving = growth[~neutral]
    shown = slice(0, max(k, int(neutral.sum())) if found.whole else None)
    return Stability(
        verdict=verdict,
        eigenvalues=found.values[shown],
        growth_rates=growth[shown],
        n_neutral=int(neutral.sum()),
        rate=-float(moving.max()) if len(moving) else math.nan,
        leading_vectors=found.vectors[:, shown],
        residuals=found.residuals[shown],
        tolerance=tolerance,
        non_normality=None if verdict == "unstable" else _non_normality(system, x),
        smoothness=smoothness,
        per=system.per,
        notes=[*notes, *found.notes, *_undercounted(found, neutral)],
    )


def _check_equilibrium(system: System, x: Tensor) -> None:
    residual = system.residual(x).detach()
    size = float(torch.linalg.vector_norm(residual)) / max(1.0, float(torch.linalg.vector_norm(x)))
    bound = max(_NOT_AN_EQUILIBRIUM, 10 * torch.finfo(x.dtype).eps)
    if not size <= bound:
        raise ValueError(
            f"x_star is not an equilibrium: the residual is {size:.3g} of its scale, at most {bound:.0e} is allowed; "
            "find one with find_fixed_point. An orbit of period two is a fixed point of F @ F"
        )
    if not torch.equal(system.residual(x).detach(), residual):
        raise ValueError("the system gave two answers for one state; make it deterministic (seed it, eval mode)")


def _dimension(conserved: int | Tensor | None, system: System, x: Tensor) -> int:
    """Return how many conservation laws there are, after checking that they are."""
    if conserved is None:
        return 0
    if isinstance(conserved, int):
        if not 0 <= conserved <= x.numel():
            raise ValueError(f"conserved must lie in [0, {x.numel()}], got {conserved}")
        return conserved
    laws = torch.as_tensor(conserved, dtype=x.dtype, device=x.device)
    if laws.ndim != 2 or laws.shape[1] != x.numel():
        raise ValueError(f"conserved must have shape (laws, {x.numel()}), got {tuple(laws.shape)}")
    probe = torch.randn(x.numel(), generator=torch.Generator().manual_seed(1), dtype=x.dtype).to(x.device)
    change = system.residual_jvp(x, probe)
    allowed = torch.finfo(x.dtype).eps ** 0.5 * torch.linalg.vector_norm(change)
    broken = (laws @ change).abs() > allowed * torch.linalg.vector_norm(laws, dim=1)
    if broken.any():
        raise ValueError(f"conserved[{int(broken.nonzero()[0])}] is not conserved by the linearised system at x_star")
    rank = int(torch.linalg.matrix_rank(laws))
    if rank < len(laws):
        raise ValueError(f"conserved has {len(laws)} laws of which only {rank} are independent")
    return rank


def _tolerance(x: Tensor, found: LeadingEigenvalues, growth: np.ndarray) -> float:
    smallest = max(_NEUTRAL, 100 * torch.finfo(x.dtype).eps)
    # Only the residuals of candidates matter: stiff directions have large ones and are far from neutral.
    slow = np.abs(growth) <= 1e-3 * max(1.0, float(np.abs(growth[np.isfinite(growth)]).max(initial=0.0)))
    return max(smallest, 10 * float(found.residuals[slow].max(initial=0.0)))


def _verdict(
    found: LeadingEigenvalues, growth: np.ndarray, neutral: np.ndarray, tolerance: float, laws: int, system: System
) -> tuple[Verdict, list[str]]:
    fastest, count = float(growth.max()), int(neutral.sum())
    if fastest > tolerance:
        return "unstable", []
    if not count:
        if laws:
            return "undecided", [f"{laws} conservation laws were supplied, but no eigenvalue is neutral."]
        return "stable", []
    at = found.values[neutral]
    if (np.abs(at - (1.0 if isinstance(system, Map) else 0.0)) > max(tolerance, 1e-6)).any():
        return "undecided", [
            "An eigenvalue sits on the stability boundary away from the neutral value (a bifurcation: oscillation or "
            "alternation of constant size). The linearisation cannot decide; nonlinear terms do."
        ]
    if np.linalg.svd(found.vectors[:, neutral], compute_uv=False)[-1] < 1e-6:
        return "undecided", [
            "The neutral eigenvalue has fewer eigenvectors than its multiplicity: perturbations drift, growing in "
            "proportion to time."
        ]
    if count == len(growth) and not found.whole:
        return "undecided", [f"All {count} computed eigenvalues are neutral; raise k to see the others."]
    if count == laws:
        return "normally stable", []
    return "undecided", [
        f"{count} directions are neutral and {laws} conservation laws were supplied. If equilibria form a manifold of "
        f"dimension {count} (symmetry, conserved totals, a valley of minima), pass conserved={count}."
    ]


def _undercounted(found: LeadingEigenvalues, neutral: np.ndarray) -> list[str]:
    if found.whole or not neutral.any():
        return []
    return ["A system of this size is searched from one start vector, which can overlook copies of equal eigenvalues."]


def _not_smooth(s: Smoothness) -> str:
    if s.kink > s.mismatch:
        return (
            f"The system is not differentiable here: derivatives from both sides differ by {s.kink:.2g} of their size. "
            "Eigenvalues describe one side only; local analysis does not apply."
        )
    return (
        f"Jacobian products and finite differences differ by {s.mismatch:.2g} of their size: the derivative is wrong "
        "or cut (detach, rounding, argmax), or the system is not differentiable here. The eigenvalues are not to be "
        "trusted."
    )


def _non_normality(system: System, x: Tensor) -> NonNormality | None:
    flow = isinstance(system, Flow)
    if isinstance(system, Flow) and system.mass is not None:
        return None
    if x.numel() <= TRANSIENT_LIMIT:
        jacobian = system.jacobian(x)
        dense = jacobian if isinstance(jacobian, np.ndarray) else jacobian.toarray()
        return non_normality_of_flow(dense) if flow else non_normality_of_map(dense)
    return non_normality_of_operator(system.operator(x))
