"""Propensities: the probability of each arm, estimated or known by design, clipped and counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from sklearn.base import BaseEstimator, is_classifier

KnownPropensity = float | Callable[[np.ndarray], Any]


@dataclass(frozen=True, slots=True, eq=False)
class ClippedPropensity:
    """Propensities that can be divided by.

    Attributes:
        values: probability of each arm, between the clip and one minus the clip.
        clipped: whether one of a row was outside.
    """

    values: Float[np.ndarray, "*draws rows arms"]
    clipped: Bool[np.ndarray, "*draws rows"]

    @property
    def n_clipped(self) -> int:
        """Rows that were clipped, in any draw."""
        return int(self.clipped.reshape(-1, self.clipped.shape[-1]).any(0).sum())


def clip_propensity(
    propensity: Float[np.ndarray, "*draws rows arms"], clip: float, known: bool = False
) -> ClippedPropensity:
    """Move propensities into [clip, 1 - clip] and say which rows were outside.

    Args:
        propensity: probability of each arm.
        clip: smallest probability, in (0, 0.5).
        known: by design: values inside (0, 1) are left as they are, and only those of exactly 0 or 1 are moved.

    Raises:
        ValueError: if a probability is NaN or outside [0, 1], or ``clip`` is out of range.

    Example:
        >>> clip_propensity(np.array([[0.999, 0.001], [0.5, 0.5]]), 0.01).n_clipped
        1
    """
    if not 0 < clip < 0.5:
        raise ValueError(f"clip must lie in (0, 0.5), got {clip}")
    if not ((propensity >= 0) & (propensity <= 1)).all():
        bad = propensity[~((propensity >= 0) & (propensity <= 1))]
        raise ValueError(f"propensity must lie in [0, 1], got {bad[0]:g}")
    if known:
        outside = (propensity == 0) | (propensity == 1)
        values = np.where(outside, np.clip(propensity, clip, 1 - clip), propensity)
    else:
        values = np.clip(propensity, clip, 1 - clip)
        outside = values != propensity
    return ClippedPropensity(values, outside.any(-1))


def is_known(propensity: Any) -> bool:
    """Whether a propensity is given by the design of the study: a number or a function of the covariates."""
    return isinstance(propensity, (int, float, np.number)) or (
        callable(propensity) and not isinstance(propensity, BaseEstimator)
    )


def known_propensity(propensity: KnownPropensity, x: np.ndarray, arms: int) -> Float[np.ndarray, "rows arms"]:
    """Return the probabilities of arms by a known design.

    Args:
        propensity: probability of the second of two arms, or a function that returns it for each row of the covariates
            (for more arms: one column an arm, the control first).
        x: covariates.
        arms: number of arms.

    Raises:
        ValueError: if a number is given for more than two arms, or the function returns another shape.
    """
    values = np.asarray(propensity(x) if callable(propensity) else np.full(len(x), float(propensity)), dtype=float)
    if values.shape == (len(x),) and arms == 2:
        values = np.stack([1 - values, values], axis=1)
    if values.shape != (len(x), arms):
        raise ValueError(
            f"propensity must give {arms} probabilities for each of {len(x)} rows, got an array of shape {values.shape}"
        )
    return values


def predicted_arms(arms: int) -> Callable[[Any, np.ndarray], np.ndarray]:
    """Return a function that reads the probabilities of all arms from a fitted classifier."""

    def probabilities(learner: Any, x: np.ndarray) -> np.ndarray:
        values = np.zeros((len(x), arms))
        values[:, np.asarray(learner.classes_, dtype=int)] = learner.predict_proba(x)
        return values

    return probabilities


def require_classifier(propensity: Any) -> None:
    """Check that a propensity learner predicts probabilities.

    Raises:
        TypeError: if it does not.
    """
    if not (
        isinstance(propensity, BaseEstimator) and is_classifier(propensity) and hasattr(propensity, "predict_proba")
    ):
        raise TypeError(
            "propensity must be a classifier with predict_proba, a known probability, or a function of the covariates; "
            f"got {type(propensity).__name__}"
        )
