"""Lyapunov exponents: whether a typical perturbation grows, where every step is another random matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from poise.dynamics.systems.map import Map
from poise.dynamics.systems.system import check_state

RandomStep = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True, slots=True)
class LyapunovEstimate:
    """The largest Lyapunov exponent, per step.

    Attributes:
        value: mean over the repeats; ``-inf`` if a product vanished.
        se: its standard error, from the spread over the repeats.
    """

    value: float
    se: float

    @property
    def sign(self) -> int:
        """1 or -1 if the value is more than two standard errors from zero, else 0."""
        return 0 if abs(self.value) <= 2 * self.se else int(math.copysign(1, self.value))


def lyapunov_exponent(
    step: Map | RandomStep,
    state: Float[Tensor, " n"],
    *,
    steps: int = 2000,
    burn_in: int = 200,
    repeats: int = 8,
    generator: torch.Generator | None = None,
) -> LyapunovEstimate:
    r"""Return the largest Lyapunov exponent of an orbit.

    .. math:: \Lambda = \lim_k \tfrac{1}{k} \log |J_k \cdots J_1 v|

    One vector is propagated by Jacobian products and brought back to length one after every step. A negative exponent
    means that almost every run returns, also where its mean square explodes (rare bad batches dominate the mean).

    Args:
        step: a ``Map``, or a function ``(state, generator) -> state`` that torch can differentiate in the state.
        state: where the orbit starts, of shape (n,).
        steps: steps of a repeat that count.
        burn_in: steps before them, in which the vector turns to the leading direction.
        repeats: consecutive parts of the orbit, each with a vector of its own, at least 2.
        generator: of the start vectors and of random steps.

    Raises:
        ValueError: if an argument is out of range or the orbit leaves the finite numbers.

    References:
        Chemnitz and Engel (2024), arXiv:2407.20209; Benettin et al. (1980).
    """
    x = check_state("state", state)
    generator = generator or torch.Generator(x.device).manual_seed(0)

    def multiply(v: Tensor) -> Tensor:
        nonlocal x
        x, along = _tangent(step, x, v[0], generator)
        return along[None]

    parts = [_mean_log_growth(multiply, _unit_rows(1, x, generator), steps, burn_in, repeats) for _ in range(repeats)]
    return _estimate(torch.cat(parts))


def lyapunov_of_product(
    multiply: Callable[[Float[Tensor, "repeats n"], torch.Generator], Float[Tensor, "repeats n"]],
    like: Float[Tensor, " n"],
    *,
    steps: int = 2000,
    burn_in: int = 200,
    repeats: int = 8,
    generator: torch.Generator | None = None,
) -> LyapunovEstimate:
    """Return the largest Lyapunov exponent of random matrices that do not depend on a state, all repeats at once.

    Args:
        multiply: takes one vector per row and a generator, returns each times a new random matrix of its own.
        like: a vector whose length, dtype and device are those of the vectors.
        steps: steps that count.
        burn_in: steps before them.
        repeats: independent repeats, at least 2.
        generator: of the start vectors and of the matrices.

    Raises:
        ValueError: if an argument is out of range or a product is not finite.

    References:
        Furstenberg and Kesten (1960). Products of random matrices.
    """
    generator = generator or torch.Generator(like.device).manual_seed(0)
    rows = _unit_rows(repeats, like, generator)
    return _estimate(_mean_log_growth(lambda v: multiply(v, generator), rows, steps, burn_in, repeats))


def _tangent(step: Map | RandomStep, x: Tensor, v: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    if isinstance(step, Map):
        return step(x).detach(), step.jvp(x, v)
    ahead, along, *_ = torch.func.jvp(lambda y: step(y, generator), (x,), (v,))
    return ahead.detach(), along.detach()


def _mean_log_growth(
    multiply: Callable[[Tensor], Tensor], v: Tensor, steps: int, burn_in: int, repeats: int
) -> Float[Tensor, " rows"]:
    if steps < 1 or burn_in < 0 or repeats < 2:
        raise ValueError(
            f"steps must be at least 1, burn_in at least 0 and repeats at least 2; got {steps}, {burn_in}, {repeats}"
        )
    total = torch.zeros(len(v), dtype=torch.float64, device=v.device)
    for i in range(burn_in + steps):
        v = multiply(v)
        length = torch.linalg.vector_norm(v, dim=1, keepdim=True)
        if i >= burn_in:
            total += length[:, 0].double().log()
        v = torch.where(length > 0, v / length, v)  # a vector that vanished stays so: its exponent is -inf
    if total.isnan().any() or total.isposinf().any():
        raise ValueError("a product is not finite: the orbit diverged; start in the basin of what you study")
    return total / steps


def _unit_rows(rows: int, like: Tensor, generator: torch.Generator) -> Tensor:
    v = torch.randn(rows, like.numel(), generator=generator, dtype=like.dtype, device=generator.device).to(like.device)
    return v / torch.linalg.vector_norm(v, dim=1, keepdim=True)


def _estimate(exponents: Float[Tensor, " repeats"]) -> LyapunovEstimate:
    if exponents.isneginf().any():
        return LyapunovEstimate(-math.inf, 0.0)
    return LyapunovEstimate(float(exponents.mean()), float(exponents.std()) / math.sqrt(len(exponents)))
