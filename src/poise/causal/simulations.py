"""Simulated rows whose effects are known: the set-ups on which learners of effects are usually compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

Draw = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True, eq=False)
class SimulatedEffects:
    """Rows with known effects.

    Args:
        X: covariates.
        y: outcomes.
        treatment: 0 or 1.
        effect: effect of each row.
        propensity: probability of treatment.
    """

    X: Float[np.ndarray, "rows columns"]
    y: Float[np.ndarray, " rows"]
    treatment: Int64[np.ndarray, " rows"]
    effect: Float[np.ndarray, " rows"]
    propensity: Float[np.ndarray, " rows"]


def simulated_effects(setup: str, rows: int, seed: int, columns: int | None = None) -> SimulatedEffects:
    r"""Draw rows of a set-up with outcome $b + (A - 1/2) \tau$ plus noise of variance 1.

    - ``"A"``: hard propensities and baseline, simple effect; uniform covariates.
    - ``"B"``: a randomised trial; normal covariates.
    - ``"C"``: easy propensities, hard baseline, an effect of 1; normal covariates.
    - ``"C-uniform"``: the same with uniform covariates.
    - ``"D"``: arms that have nothing in common; normal covariates.
    - ``"E"``: one covariate, propensities of 0.1 and 0.9, no effect.
    - ``"F"``: one covariate that is the propensity, no effect.

    Args:
        setup: its name.
        rows: how many.
        seed: of the draw.
        columns: covariates; by default 10, and 1 for ``"E"`` and ``"F"``, which have no more.

    Raises:
        ValueError: if the set-up is unknown, or has more or fewer columns.

    References:
        Nie and Wager (2021), arXiv:1712.04912 (A to D); Fisher (2024), arXiv:2307.09700 (E, F).

    Example:
        >>> simulated_effects("A", 100, seed=0).X.shape
        (100, 10)
    """
    if setup not in _SETUPS:
        raise ValueError(f"setup must be one of {sorted(_SETUPS)}, got {setup!r}")
    draw, least, most = _SETUPS[setup]
    columns = (10 if most > 1 else 1) if columns is None else columns
    if not least <= columns <= most:
        raise ValueError(f"columns must be from {least} to {most} for setup {setup!r}, got {columns}")
    generator = np.random.default_rng(seed)
    x, b, e, tau = draw(generator, rows, columns)
    treatment = (generator.random(rows) < e).astype(np.int64)
    y = b + (treatment - 0.5) * tau + generator.standard_normal(rows)
    return SimulatedEffects(x, y, treatment, tau, e)


def _setup_a(generator: np.random.Generator, rows: int, columns: int) -> Draw:
    x = generator.random((rows, columns))
    wave = np.sin(np.pi * x[:, 0] * x[:, 1])
    b = wave + 2 * (x[:, 2] - 0.5) ** 2 + x[:, 3] + 0.5 * x[:, 4]
    return x, b, np.clip(wave, 0.1, 0.9), (x[:, 0] + x[:, 1]) / 2


def _setup_b(generator: np.random.Generator, rows: int, columns: int) -> Draw:
    x = generator.standard_normal((rows, columns))
    b = np.maximum(0, np.maximum(x[:, 0] + x[:, 1], x[:, 2])) + np.maximum(0, x[:, 3] + x[:, 4])
    return x, b, np.full(rows, 0.5), x[:, 0] + np.log1p(np.exp(x[:, 1]))


def _setup_c(generator: np.random.Generator, rows: int, columns: int) -> Draw:
    return _of_c(generator.standard_normal((rows, columns)))


def _setup_c_uniform(generator: np.random.Generator, rows: int, columns: int) -> Draw:
    return _of_c(generator.random((rows, columns)))


def _of_c(x: np.ndarray) -> Draw:
    b = 2 * np.log1p(np.exp(x[:, 0] + x[:, 1] + x[:, 2]))
    return x, b, 1 / (1 + np.exp(x[:, 1] + x[:, 2])), np.ones(len(x))


def _setup_d(generator: np.random.Generator, rows: int, columns: int) -> Draw:
    x = generator.standard_normal((rows, columns))
    first, second = np.maximum(x[:, 0] + x[:, 1] + x[:, 2], 0), np.maximum(x[:, 3] + x[:, 4], 0)
    return x, (first + second) / 2, 1 / (1 + np.exp(-x[:, 0]) + np.exp(-x[:, 1])), first - second


def _setup_e(generator: np.random.Generator, rows: int, columns: int) -> Draw:
    x = generator.uniform(-1, 1, (rows, columns))
    v = x[:, 0]
    pieces = [0.5 * (v + 2) ** 2, v / 2 + 0.875, -5 * (v - 0.2) ** 2 + 1.075, v + 0.125]
    b = np.select([v <= -0.5, v < 0, v < 0.5], pieces[:3], pieces[3])
    return x, b, 0.1 + 0.8 * (v > 0), np.zeros(rows)


def _setup_f(generator: np.random.Generator, rows: int, columns: int) -> Draw:
    x = generator.uniform(0.05, 0.95, (rows, columns))
    return x, np.zeros(rows), x[:, 0], np.zeros(rows)


_SETUPS: dict[str, tuple[Callable[[np.random.Generator, int, int], Draw], int, int]] = {
    "A": (_setup_a, 5, 10_000),
    "B": (_setup_b, 5, 10_000),
    "C": (_setup_c, 3, 10_000),
    "C-uniform": (_setup_c_uniform, 3, 10_000),
    "D": (_setup_d, 5, 10_000),
    "E": (_setup_e, 1, 1),
    "F": (_setup_f, 1, 1),
}
