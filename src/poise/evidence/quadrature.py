"""Deterministic integration of the likelihoods of hierarchical binomial models.

The deviation of each group is integrated out by Gauss-Hermite quadrature centred on its mode; the few parameters that
are common to the groups, by a Gauss-Legendre product rule on a box around the mode of their posterior. Everything stays
in logs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import special
from scipy.interpolate import BarycentricInterpolator

Floats = NDArray[np.float64]

_DROP = 17.0
"""A box ends where the log density has fallen by this much (5.8 standard deviations of a normal)."""

_ENOUGH = 13.0
"""A box whose edge lies this far down stays; without the gap to ``_DROP`` it would shrink and grow in turns."""

_CHUNK = 100_000
"""Elements of the largest temporary array: it stays in the cache, and many groups do not exhaust the memory."""

_NEWTON_STEPS = 8


@dataclass(frozen=True, slots=True)
class Quadrature:
    """How finely to integrate.

    Args:
        outer: Gauss-Legendre nodes per shared parameter to begin with (twice as many where fewer than three are
            shared); they grow by half until the error of the log marginal likelihood, extrapolated from its last
            values, is below ``tolerance``.
        inner: Gauss-Hermite nodes per group to begin with; they grow by half until the log marginal likelihood moves
            less than ``tolerance``.
        tolerance: largest accepted error of a log marginal likelihood, in nats.
        refinements: how often the nodes may grow.

    Raises:
        ValueError: if a number of nodes is below 2, or ``tolerance`` or ``refinements`` is not positive.
    """

    outer: int = 14
    inner: int = 7
    tolerance: float = 2e-4
    refinements: int = 5

    def __post_init__(self) -> None:
        if self.outer < 2 or self.inner < 2:
            raise ValueError(f"outer and inner must be at least 2 nodes, got {self.outer} and {self.inner}")
        if not self.tolerance > 0 or self.refinements < 1:
            raise ValueError(f"tolerance and refinements must be positive, got {self.tolerance} and {self.refinements}")


class QuadratureError(ArithmeticError):
    """An integral did not converge; the message holds the last change."""


@dataclass(frozen=True, slots=True)
class Cells:
    """Counts per group under the two conditions; a group that repeats is held once with its multiplicity.

    The probability of a success is expit(bias + effect) under the first condition and expit(bias - effect) under the
    second, all on the logit scale.
    """

    successes_first: Floats
    trials_first: Floats
    successes_second: Floats
    trials_second: Floats
    multiplicity: Floats

    def log_likelihood(self, bias: Floats, effect: Floats) -> Floats:
        """Log likelihood without binomial coefficients; the last but one axis of ``effect`` runs over groups."""
        first, second = bias + effect, bias - effect
        k1, n1, k2, n2 = (x[:, None] for x in self._counts())
        out = k1 * first - n1 * _softplus(first)
        if self.trials_second.any():
            out += k2 * second - n2 * _softplus(second)
        return out

    def slope_and_information(self, bias: Floats, effect: Floats) -> tuple[Floats, Floats]:
        """First derivative in ``effect`` and minus the second; the last axis runs over groups."""
        k1, n1, k2, n2 = self._counts()
        p, q = special.expit(bias + effect), special.expit(bias - effect)
        return (k1 - n1 * p) - (k2 - n2 * q), n1 * p * (1 - p) + n2 * q * (1 - q)

    def _counts(self) -> tuple[Floats, Floats, Floats, Floats]:
        return self.successes_first, self.trials_first, self.successes_second, self.trials_second


def _softplus(x: Floats) -> Floats:
    # Three times as fast as np.logaddexp(0, x), and most of the time is spent here.
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0.0)


def group_log_likelihood(
    cells: Cells,
    bias: Float[np.ndarray, " points"],
    effect: Float[np.ndarray, " points"],
    sd: Float[np.ndarray, " points"],
    nodes: int,
) -> Float[np.ndarray, " points"]:
    """Sum over groups of the log likelihood with each group's deviation integrated out.

    Args:
        cells: the counts.
        bias: bias at each point, on the logit scale.
        effect: effect at each point, on the logit scale.
        sd: standard deviation of the deviations at each point; may be 0.
        nodes: Gauss-Hermite nodes.

    References:
        Liu and Pierce, A note on Gauss-Hermite quadrature, Biometrika 81, 1994 (nodes about the mode, as here).
    """
    parts = [
        # A matrix product would be shorter, but its last bits may depend on the number of threads.
        (_group_terms(cells, bias[i], effect[i], sd[i], nodes)[0] * cells.multiplicity).sum(-1)
        for i in _chunks(len(bias), len(cells.multiplicity) * nodes)
    ]
    return np.concatenate(parts)


def group_moments(
    cells: Cells, bias: Floats, effect: Floats, sd: Floats, weights: Floats, nodes: int
) -> tuple[Floats, Floats]:
    """Posterior mean and standard deviation of each group's effect on the logit scale.

    Args:
        cells: the counts.
        bias: bias at each node of the shared parameters.
        effect: effect at each node.
        sd: standard deviation at each node.
        weights: posterior weights of those nodes; they sum to one.
        nodes: Gauss-Hermite nodes.
    """
    first, second = np.zeros(len(cells.multiplicity)), np.zeros(len(cells.multiplicity))
    matters = weights > 1e-12  # the corners of the box, most of its nodes, hold almost nothing
    bias, effect, sd, weights = bias[matters], effect[matters], sd[matters], weights[matters]
    for i in _chunks(len(bias), len(cells.multiplicity) * nodes):
        log_total, terms, z = _group_terms(cells, bias[i], effect[i], sd[i], nodes)
        inner = np.exp(terms - log_total[..., None])
        value = effect[i, None, None] + sd[i, None, None] * z
        first += (weights[i, None] * (inner * value).sum(-1)).sum(0)
        second += (weights[i, None] * (inner * value**2).sum(-1)).sum(0)
    return first, np.sqrt(np.maximum(second - first**2, 0.0))


def _group_terms(cells: Cells, bias: Floats, effect: Floats, sd: Floats, nodes: int) -> tuple[Floats, Floats, Floats]:
    """Log integral per point and group, its terms, and the nodes (standard normal deviations)."""
    bias, effect, sd = bias[:, None], effect[:, None], sd[:, None]
    if not sd.any():
        nodes = 1  # without deviations there is nothing to integrate
    # In units of sd the prior of a deviation is standard normal: sd -> 0 needs no special case.
    z = np.zeros((len(bias), len(cells.multiplicity)))
    for _ in range(_NEWTON_STEPS if nodes > 1 else 0):
        slope, information = cells.slope_and_information(bias, effect + sd * z)
        step = (sd * slope - z) / (sd**2 * information + 1.0)
        z = z + step
        if np.abs(step).max() < 1e-4:  # a node that is off its mode by 1e-4 costs far less than the rule's own error
            break
    _, information = cells.slope_and_information(bias, effect + sd * z)
    x, w = special.roots_hermite(nodes)
    width = np.sqrt(2.0 / (sd**2 * information + 1.0))
    at = z[..., None] + width[..., None] * x
    terms = cells.log_likelihood(bias[..., None], effect[..., None] + sd[..., None] * at)
    if nodes == 1:
        return terms[..., 0], terms, at
    terms += np.log(w) + x**2 - 0.5 * at**2 + np.log(width / math.sqrt(2.0 * math.pi))[..., None]
    top = terms.max(-1)
    return top + np.log(np.exp(terms - top[..., None]).sum(-1)), terms, at


def _chunks(points: int, elements_per_point: int) -> list[slice]:
    size = max(1, _CHUNK // max(1, elements_per_point))
    return [slice(i, i + size) for i in range(0, points, size)]


LogDensity = Callable[[list[Floats], int], Floats]
"""Log density at points given as one array per parameter; the integer is the number of inner nodes."""


@dataclass(frozen=True, slots=True)
class Integral:
    """An integral over a box and the density on its nodes.

    Args:
        log_value: log of the integral.
        points: nodes, one flat array per parameter.
        weights: fraction of the integral at each node; they sum to one.
        axes: nodes along each parameter.
        box: ends of the box along each parameter.
        marginals: log density of each parameter at its nodes, normalised.
        change: by how much the last refinement moved ``log_value``.
    """

    log_value: float
    points: list[Floats]
    weights: Floats
    axes: list[Floats]
    box: list[tuple[float, float]]
    marginals: list[Floats]
    change: float

    def mean(self, values: Floats) -> float:
        """Posterior mean of a function given by its values at ``points``."""
        return float((self.weights * values).sum())

    def quantiles(self, axis: int, levels: Sequence[float]) -> Floats:
        """Quantiles of one parameter."""
        fine = np.linspace(*self.box[axis], 4001)
        # The log density is smooth and Gauss-Legendre nodes suit interpolation; the density itself is a narrow peak.
        log_density = BarycentricInterpolator(self.axes[axis], self.marginals[axis])(fine)
        density = np.exp(log_density - log_density.max())
        cumulative = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
        return np.interp(levels, cumulative / cumulative[-1], fine)


def integrate(
    log_density: LogDensity,
    start: Sequence[tuple[float, float]],
    support: Sequence[tuple[float, float]],
    quadrature: Quadrature,
) -> Integral:
    """Integrate a unimodal density over the box that holds its mass.

    Args:
        log_density: the density's logarithm.
        start: a box to begin the search from, per parameter; the prior's central mass suffices.
        support: where the density may be positive, per parameter.
        quadrature: nodes and tolerance.

    Raises:
        QuadratureError: if the box or the integral does not converge.
    """
    if not start:
        value = float(log_density([], quadrature.inner)[0])
        return Integral(value, [], np.ones(1), [], [], [], 0.0)
    box = _find_box(log_density, list(start), list(support), quadrature.inner)
    # Where fewer than three parameters are shared, twice the nodes cost almost nothing.
    nodes = quadrature.outer * (1 if len(start) > 2 else 2)
    inner, last = _refine_inner(log_density, box, nodes, quadrature)
    for _ in range(quadrature.refinements):
        nodes += nodes // 2
        last = _on_box(log_density, box, nodes, inner, last.log_value)
        # Gauss-Legendre converges geometrically: half as many nodes again raise the error to the power 1.5.
        if abs(last.change) ** 1.5 < quadrature.tolerance:
            return last
    raise QuadratureError(
        f"the log marginal likelihood still moved by {last.change:.3g} at {nodes} nodes per shared parameter "
        f"(tolerance {quadrature.tolerance:g}); raise outer or refinements of Quadrature"
    )


def _refine_inner(
    log_density: LogDensity, box: list[tuple[float, float]], nodes: int, quadrature: Quadrature
) -> tuple[int, Integral]:
    """Find how many inner nodes are needed, where that is cheap: on the first outer grid."""
    inner = quadrature.inner
    last = _on_box(log_density, box, nodes, inner, math.inf)
    for _ in range(2 * quadrature.refinements):
        now = _on_box(log_density, box, nodes, inner + inner // 2, last.log_value)
        # The power 1.5 would be too optimistic here: groups of successes only are far from normal and converge slowly.
        if abs(now.change) < quadrature.tolerance:
            return inner, last
        inner, last = inner + inner // 2, now
    raise QuadratureError(
        f"the log marginal likelihood still moved by {last.change:.3g} at {inner} nodes per group "
        f"(tolerance {quadrature.tolerance:g}); raise inner or refinements of Quadrature"
    )


def _on_box(log_density: LogDensity, box: list[tuple[float, float]], nodes: int, inner: int, before: float) -> Integral:
    x, w = special.roots_legendre(nodes)
    axes = [low + (high - low) * (x + 1) / 2 for low, high in box]
    log_w = [np.log(w * (high - low) / 2) for low, high in box]
    points = [p.ravel() for p in np.meshgrid(*axes, indexing="ij")]
    log_weight = sum(np.meshgrid(*log_w, indexing="ij")).ravel()  # type: ignore[union-attr]
    terms = (log_density(points, inner) + log_weight).reshape([nodes] * len(box))
    total = float(special.logsumexp(terms))
    others = [tuple(j for j in range(len(box)) if j != i) for i in range(len(box))]
    marginals = [special.logsumexp(terms, axis=o) - total - lw for o, lw in zip(others, log_w, strict=True)]
    weights = np.exp(terms - total).ravel()
    return Integral(total, points, weights / weights.sum(), axes, box, marginals, total - before)


def _find_box(
    log_density: LogDensity, box: list[tuple[float, float]], support: list[tuple[float, float]], inner: int
) -> list[tuple[float, float]]:
    """Zoom in, or out, until the box just holds what is within ``_DROP`` of the top."""
    x, _ = special.roots_legendre(9)
    x = np.concatenate([[-1.0 + 1e-9], x, [1.0 - 1e-9]])
    for turn in range(80):
        axes = [low + (high - low) * (x + 1) / 2 for low, high in box]
        points = [p.ravel() for p in np.meshgrid(*axes, indexing="ij")]
        density = log_density(points, inner).reshape([len(x)] * len(box))
        new = [_cut(axis, _profile(density, i), support[i]) for i, axis in enumerate(axes)]
        if turn > 12:  # from here on it only grows, so it settles
            new = [(min(a, c), max(b, d)) for (a, b), (c, d) in zip(box, new, strict=True)]
        widths = [max(b - a, d - c) for (a, b), (c, d) in zip(box, new, strict=True)]
        moved = [max(abs(a - c), abs(b - d)) for (a, b), (c, d) in zip(box, new, strict=True)]
        box = new
        if all(m <= 0.1 * w for m, w in zip(moved, widths, strict=True)):
            return box
    raise QuadratureError("the box around the mode did not converge; is the density unimodal?")


def _profile(density: Floats, axis: int) -> Floats:
    return density.max(axis=tuple(j for j in range(density.ndim) if j != axis))


def _cut(axis: Floats, profile: Floats, support: tuple[float, float]) -> tuple[float, float]:
    """New ends of one side of the box, from the highest density seen at each node of that side."""
    threshold = profile.max() - _DROP
    keep = np.flatnonzero(profile > threshold)
    width = axis[-1] - axis[0]
    ends = []
    for edge, neighbour in ((keep[0], -1), (keep[-1], 1)):
        if 0 <= edge + neighbour < len(axis):
            inside, outside = profile[edge], profile[edge + neighbour]
            # A log density falls like a parabola, or faster than a line at least.
            share = math.sqrt((inside - threshold) / (inside - outside)) if np.isfinite(outside) else 1.0
            # Before convergence the maximum itself may lie between nodes: keep the whole gap then.
            share = 1.0 if len(keep) < 3 else share
            ends.append(axis[edge] + share * (axis[edge + neighbour] - axis[edge]))
        elif profile[edge] > profile.max() - _ENOUGH:
            ends.append(axis[edge] + neighbour * width / 2)
        else:
            ends.append(axis[edge])
    return max(ends[0], support[0]), min(ends[1], support[1])
