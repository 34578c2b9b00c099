"""Corrections of a generator's samples before it is trained on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import cKDTree

Samples = Float[np.ndarray, "rows dim"]


class Corrector(Protocol):
    """Takes samples and returns as many corrected ones, in the same order."""

    def __call__(self, samples: Samples, rng: np.random.Generator) -> Samples:
        """Return corrected samples."""


@dataclass(frozen=True, slots=True)
class IdealMixture:
    r"""Replaces each sample, with probability :math:`\gamma / (1 + \gamma)`, by one of the true distribution.

    It verifies theory; as a remedy it would need what nobody has.

    Args:
        gamma: strength, at least 0.
        reference: ``reference(count, generator)`` draws from the true distribution.
    """

    gamma: float
    reference: Callable[[int, np.random.Generator], Samples]

    def __post_init__(self) -> None:
        if not self.gamma >= 0:
            raise ValueError(f"gamma must be at least 0, got {self.gamma!r}")

    def __call__(self, samples: Samples, rng: np.random.Generator) -> Samples:
        """Return corrected samples."""
        weight = 1.0 if np.isinf(self.gamma) else self.gamma / (1 + self.gamma)
        replaced = rng.random(len(samples)) < weight
        corrected = samples.copy()
        if replaced.any():
            corrected[replaced] = self.reference(int(replaced.sum()), rng)
        return corrected


@dataclass(frozen=True, slots=True)
class Projection:
    """Moves each sample towards what a rule makes of it: a physical constraint, valid units, the nearest valid record.

    Args:
        function: maps samples to valid ones, row by row.
        strength: in [0, 1]; 1 takes the valid sample itself.
    """

    function: Callable[[Samples], Samples]
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength must be in [0, 1], got {self.strength!r}")

    def __call__(self, samples: Samples, rng: np.random.Generator) -> Samples:
        """Return corrected samples."""
        valid = self.function(samples)
        # With strength 1 the valid sample itself, not what rounding makes of it.
        return valid if self.strength == 1 else samples + self.strength * (valid - samples)


def nearest_reference(reference: Samples, strength: float = 1.0) -> Projection:
    """Return the correction that moves each sample towards its nearest reference row.

    Args:
        reference: real rows, or the centres of clusters of them.
        strength: in [0, 1].
    """
    tree = cKDTree(reference)
    return Projection(lambda samples: reference[tree.query(samples)[1]], strength)


@dataclass(frozen=True, slots=True)
class Reject:
    """Draws again the samples that a validator refuses.

    Args:
        valid: ``valid(samples)``, one boolean a row.
        draw: ``draw(count, generator)`` draws new samples from the generator.
        tries: how often; what is refused after that stays as it is.
    """

    valid: Callable[[Samples], Bool[np.ndarray, " rows"]]
    draw: Callable[[int, np.random.Generator], Samples]
    tries: int = 20

    def __call__(self, samples: Samples, rng: np.random.Generator) -> Samples:
        """Return corrected samples."""
        samples = samples.copy()
        for _ in range(self.tries):
            refused = ~np.asarray(self.valid(samples), bool)
            if not refused.any():
                break
            samples[refused] = self.draw(int(refused.sum()), rng)
        return samples
