"""What a counterfactual may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float


@dataclass(frozen=True, slots=True)
class FeatureConstraints:
    """Which columns may change, how far, and in which direction.

    Args:
        features_to_vary: columns that may change; all by default.
        permitted_range: by column, lowest and highest value.
        categories: groups of columns that are one category each (exactly one of them is 1): they change together, to
            what some training row has.
        increase_only: columns that may only grow.
        decrease_only: columns that may only fall.

    Raises:
        ValueError: if a range is empty, a column is in two groups, or is to grow and to fall.
    """

    features_to_vary: Sequence[int] | None = None
    permitted_range: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    categories: Sequence[Sequence[int]] = ()
    increase_only: Sequence[int] = ()
    decrease_only: Sequence[int] = ()

    def __post_init__(self) -> None:
        for column, (low, high) in self.permitted_range.items():
            if not low <= high:
                raise ValueError(f"permitted_range of column {column} must have low <= high, got {low} and {high}")
        columns = [column for group in self.categories for column in group]
        if len(set(columns)) < len(columns):
            raise ValueError("categories must be groups without common columns")
        if both := set(self.increase_only) & set(self.decrease_only):
            raise ValueError(f"a column must not be in increase_only and decrease_only, got {sorted(both)}")

    def frozen(self, dim: int) -> Bool[np.ndarray, " dim"]:
        """Return which columns must stay, of ``dim`` columns.

        Raises:
            ValueError: if a column is out of range.
        """
        named = [*self.permitted_range, *self.increase_only, *self.decrease_only, *(self.features_to_vary or ())]
        named += [column for group in self.categories for column in group]
        if strange := sorted({column for column in named if not 0 <= column < dim}):
            raise ValueError(f"columns must be in 0 .. {dim - 1}, got {strange}")
        if self.features_to_vary is None:
            return np.zeros(dim, bool)
        stays = np.ones(dim, bool)
        stays[list(self.features_to_vary)] = False
        return stays

    def units(self, dim: int) -> list[list[int]]:
        """Return the columns that change together: categories, and every other column by itself."""
        grouped = {column for group in self.categories for column in group}
        return [list(group) for group in self.categories] + [[c] for c in range(dim) if c not in grouped]

    def project(self, candidates: Float[np.ndarray, "rows dim"], x: Float[np.ndarray, " dim"]) -> np.ndarray:
        """Return candidates with frozen columns as in ``x`` and numbers moved into what is permitted.

        Args:
            candidates: points.
            x: the point that is explained.
        """
        points = np.array(candidates, dtype=float)
        for column, (low, high) in self.permitted_range.items():
            points[:, column] = np.clip(points[:, column], low, high)
        for column in self.increase_only:
            points[:, column] = np.maximum(points[:, column], x[column])
        for column in self.decrease_only:
            points[:, column] = np.minimum(points[:, column], x[column])
        stays = self.frozen(len(x))
        for group in self.categories:
            if stays[list(group)].any():  # a category of which a column is frozen is frozen
                stays[list(group)] = True
        points[:, stays] = x[stays]
        return points
