"""Counterfactual explanations: the closest, and ones that stay valid when the model is trained again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from sklearn.neighbors import NearestNeighbors
from torch import nn

from poise.sensitivity.counterfactual_stability import (
    counterfactual_stability,
    favourable_probability,
    torch_probability,
)
from poise.sensitivity.feature_constraints import FeatureConstraints

Method = Literal["closest", "robust_neighbour", "robust_gradient"]
_HALVINGS = 20
_MARGIN = 1e-5  # of probability, so that a decision at the boundary does not hang on rounding


@dataclass(frozen=True, slots=True, eq=False)
class Counterfactuals:
    """One counterfactual for each row that was explained.

    Attributes:
        points: the counterfactuals; NaN where there is none.
        valid: whether the model gives the favourable class there.
        stability: relaxed stability of each point; NaN where there is none.
        robust: whether it reaches the threshold ``tau``.
        cost: L1 and L2 distance to the row.
        plausible: whether the point is as near to its nearest training row as 95 % of the training rows are to theirs.
        reasons: why a row has none or is not robust, empty otherwise.
    """

    points: Float[np.ndarray, "rows dim"]
    valid: Bool[np.ndarray, " rows"]
    stability: Float[np.ndarray, " rows"]
    robust: Bool[np.ndarray, " rows"]
    cost: Float[np.ndarray, "rows 2"]
    plausible: Bool[np.ndarray, " rows"]
    reasons: Sequence[str]


@dataclass(eq=False)
class CounterfactualSearch:
    """Finds what would have to change for a favourable decision.

    ``"closest"`` starts from the nearest favourable training rows, moves back towards the row as far as the decision
    allows, and undoes every change that is not needed. ``"robust_neighbour"`` (T-Rex:NN) returns the nearest training
    row whose stability reaches ``tau``. ``"robust_gradient"`` (T-Rex:I) climbs the stability from the closest one; it
    needs a torch module. A point far inside the favourable class does about as well at equal distance: compare with
    ``confidence``.

    Args:
        model: fitted classifier with ``predict_proba``, torch module with logits, or function of rows that returns the
            favourable probability.
        method: one of the three.
        tau: stability that is robust, in (0.5, 1).
        sigma: standard deviation of the neighbourhood; features must be on a common scale.
        n_samples: neighbours for the stability.
        constraints: what may change.
        favourable: the favourable class.
        confidence: favourable probability that a closest counterfactual must reach, at least 0.5.
        candidates: nearest favourable training rows from which the search starts.
        step: length of a gradient step.
        max_steps: most gradient steps.
        time_limit: seconds for a row.
        seed: of the neighbourhoods.

    Raises:
        ValueError: if a number is out of range, or the method is unknown.
        TypeError: if ``"robust_gradient"`` is asked of a model that is no torch module.

    References:
        Hamman, Noorani, Mishra, Magazzeni, Dutta, "Robust counterfactual explanations for neural networks with
        probabilistic guarantees", ICML 2023, arXiv:2305.11997.
    """

    model: Any
    method: Method = "closest"
    tau: float = 0.75
    sigma: float = 0.1
    n_samples: int = 1000
    constraints: FeatureConstraints = field(default_factory=FeatureConstraints)
    favourable: Any = 1
    confidence: float = 0.5
    candidates: int = 10
    step: float = 0.01
    max_steps: int = 200
    time_limit: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in ("closest", "robust_neighbour", "robust_gradient"):
            raise ValueError(f"method must be 'closest', 'robust_neighbour' or 'robust_gradient', got {self.method!r}")
        if not 0.5 < self.tau < 1:
            raise ValueError(f"tau must be in (0.5, 1), got {self.tau!r}")
        if not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence must be in [0.5, 1), got {self.confidence!r}")
        if self.method == "robust_gradient" and not isinstance(self.model, nn.Module):
            raise TypeError(
                f"method 'robust_gradient' needs a torch module, got {type(self.model).__name__}: use "
                "'robust_neighbour'"
            )

    def fit(self, X: Float[np.ndarray, "train dim"]) -> CounterfactualSearch:
        """Take the training rows from which candidates come.

        Args:
            X: finite numbers.

        Raises:
            ValueError: if a value is not finite, or the model gives no training row the favourable class.
        """
        X = np.asarray(X, float)
        if X.ndim != 2 or not np.isfinite(X).all():
            raise ValueError(f"X must be finite numbers of shape (rows, dim), got shape {np.shape(X)}")
        self._predict = favourable_probability(self.model, self.favourable)
        probability = self._predict(X)
        if probability.min() < 0 or probability.max() > 1:
            raise ValueError("model must give probabilities of the favourable class in [0, 1]")
        self.constraints.frozen(X.shape[1])
        self._train, self._accepted = X, X[probability >= max(0.5, self.confidence)]
        if not len(self._accepted):
            raise ValueError("model must give some training row the favourable class, got none")
        near = NearestNeighbors(n_neighbors=min(2, len(X))).fit(X)
        self._nearest, self._usual = near, float(np.quantile(near.kneighbors(X)[0][:, -1], 0.95))
        self._stable: Float[np.ndarray, " accepted"] | None = None
        return self

    def explain(self, X: Float[np.ndarray, "rows dim"]) -> Counterfactuals:
        """Return a counterfactual for each row.

        Args:
            X: rows with an unfavourable decision; a favourable one is returned as it is.

        Raises:
            ValueError: if there is another number of columns, or a value is not finite.
        """
        X = np.asarray(X, float)
        if X.ndim != 2 or X.shape[1] != self._train.shape[1] or not np.isfinite(X).all():
            raise ValueError(f"X must be finite with {self._train.shape[1]} columns, got shape {X.shape}")
        found = [self._one(x) for x in X]
        points = np.stack([point for point, _ in found])
        reasons = [reason for _, reason in found]
        there = np.isfinite(points).all(1)
        probability, stability = np.full((2, len(X)), np.nan)
        plausible = np.zeros(len(X), bool)
        if there.any():
            probability[there] = self._predict(points[there])
            stability[there] = self.stability(points[there])
            plausible[there] = self._nearest.kneighbors(points[there], n_neighbors=1)[0][:, 0] <= self._usual
        robust = stability >= self.tau
        change = points - X
        cost = np.stack([np.abs(change).sum(1), np.sqrt((change**2).sum(1))], axis=1)
        return Counterfactuals(points, probability >= 0.5, stability, robust, cost, plausible, reasons)

    def stability(self, points: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, " rows"]:
        """Return the relaxed stability of points."""
        return counterfactual_stability(
            self._predict, points, sigma=self.sigma, n_samples=self.n_samples, seed=self.seed
        )

    def _one(self, x: Float[np.ndarray, " dim"]) -> tuple[Float[np.ndarray, " dim"], str]:
        nothing = np.full(len(x), np.nan)
        if self._predict(x[None])[0] >= self.confidence and self.method == "closest":
            return x.copy(), ""
        until = time.monotonic() + self.time_limit
        if self.method == "robust_neighbour":
            return self._robust_neighbour(x, nothing)
        point = self._closest(x, until)
        if point is None:
            return nothing, "no favourable training row fits the constraints"
        if self.method == "closest":
            return point, ""
        return self._climbed(x, point, until)

    # --- the closest

    def _favours(self, point: Float[np.ndarray, " dim"]) -> bool:
        return bool(self._predict(point[None])[0] >= self.confidence + _MARGIN)

    def _closest(self, x: Float[np.ndarray, " dim"], until: float) -> Float[np.ndarray, " dim"] | None:
        order = np.argsort(np.abs(self._accepted - x).sum(1), kind="stable")
        candidates = self.constraints.project(self._accepted[order], x)
        fits = np.flatnonzero(self._predict(candidates) >= self.confidence + _MARGIN)[: self.candidates]
        best: Float[np.ndarray, " dim"] | None = None
        for candidate in candidates[fits]:
            point = self._towards(x, self._without_idle_changes(x, self._towards(x, candidate)))
            if best is None or np.abs(point - x).sum() < np.abs(best - x).sum():
                best = point
            if time.monotonic() > until:
                break
        return best

    def _towards(self, x: Float[np.ndarray, " dim"], point: Float[np.ndarray, " dim"]) -> Float[np.ndarray, " dim"]:
        """Move back towards x on a line, categories as they are, as far as the decision allows."""
        numbers = np.ones(len(x), bool)
        for group in self.constraints.categories:
            numbers[list(group)] = False
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            here = self._between(x, point, middle, numbers)
            low, high = (low, middle) if self._favours(here) else (middle, high)
        return self._between(x, point, high, numbers) if high < 1 else point

    def _between(
        self, x: Float[np.ndarray, " dim"], point: Float[np.ndarray, " dim"], part: float, numbers: np.ndarray
    ) -> Float[np.ndarray, " dim"]:
        here = np.where(numbers & (point != x), x + part * (point - x), point)
        # A value of the row may lie outside what is permitted: it may stay, but not become another one outside.
        return np.where(point == x, x, self.constraints.project(here[None], x)[0])

    def _without_idle_changes(
        self, x: Float[np.ndarray, " dim"], point: Float[np.ndarray, " dim"]
    ) -> Float[np.ndarray, " dim"]:
        """Undo, the smallest first, every change without which the decision stays favourable."""
        point = point.copy()
        units = [unit for unit in self.constraints.units(len(x)) if (point[unit] != x[unit]).any()]
        for unit in sorted(units, key=lambda unit: float(np.abs(point[unit] - x[unit]).sum())):
            undone = point.copy()
            undone[unit] = x[unit]
            if self._favours(undone):
                point = undone
        return point

    # --- robust ones

    def _robust_neighbour(
        self, x: Float[np.ndarray, " dim"], nothing: Float[np.ndarray, " dim"]
    ) -> tuple[Float[np.ndarray, " dim"], str]:
        order = np.argsort(np.linalg.norm(self._accepted - x, axis=1), kind="stable")
        points = self.constraints.project(self._accepted[order], x)
        changed = not np.array_equal(points, self._accepted[order])
        if changed:
            points = points[self._predict(points) >= 0.5]
            stability = self.stability(points) if len(points) else np.empty(0)
        else:
            if self._stable is None:
                self._stable = self.stability(self._accepted)  # once: every row has the same candidates
            stability = self._stable[order]
        if not len(points):
            return nothing, "no favourable training row fits the constraints"
        robust = np.flatnonzero(stability >= self.tau)
        if len(robust):
            return points[robust[0]], ""
        return points[0], f"no candidate reaches a stability of {self.tau:g}: this is the nearest one"

    def _climbed(
        self, x: Float[np.ndarray, " dim"], start: Float[np.ndarray, " dim"], until: float
    ) -> tuple[Float[np.ndarray, " dim"], str]:
        """Gradient ascent on the relaxed stability, with the same displacements at every step."""
        parameter = next(self.model.parameters())
        noise = self.sigma * np.random.default_rng(self.seed).standard_normal((self.n_samples, len(x)))
        displaced = torch.as_tensor(noise, dtype=parameter.dtype, device=parameter.device)
        low, high = self._train.min(0), self._train.max(0)
        point = start
        for _ in range(self.max_steps):
            here = torch.tensor(point, dtype=parameter.dtype, device=parameter.device, requires_grad=True)
            probability = torch_probability(self.model, torch.cat([here[None], here + displaced]), int(self.favourable))
            stability = torch.minimum(probability[0], 2 * probability[1:] - probability[0]).mean()
            if stability.item() >= self.tau:
                return point, ""
            (gradient,) = torch.autograd.grad(stability, here)
            direction = gradient.double().cpu().numpy()
            moved = np.clip(point + self.step * direction / (np.linalg.norm(direction) + 1e-12), low, high)
            moved = self.constraints.project(moved[None], x)[0]
            for group in self.constraints.categories:
                moved[list(group)] = point[list(group)]  # a category is no number
            if self._predict(moved[None])[0] < 0.5 or np.array_equal(moved, point) or time.monotonic() > until:
                break
            point = moved
        if self.stability(point[None])[0] >= self.tau:
            return point, ""
        return point, f"the stability of {self.tau:g} was not reached within {self.max_steps} steps"
