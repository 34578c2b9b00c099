"""Rows that a classifier has scored, as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64


@dataclass(frozen=True, slots=True, eq=False)
class ScoredRows:
    """Scores and predictions of a classifier, with features and labels where they are known.

    Args:
        score: probability of the positive class, in one column, or of each class, in one column a class.
        prediction: predicted class: 0 or 1, or the number of a column of ``score``.
        label: true class, coded in the same way, -1 where it is not known; None if no label is known.
        features: encoded inputs of the classifier, NaN where one is missing; None where they are not needed.
    """

    score: Float[np.ndarray, "rows scores"]
    prediction: Int64[np.ndarray, " rows"]
    label: Int64[np.ndarray, " rows"] | None = None
    features: Float[np.ndarray, "rows columns"] | None = None

    def __len__(self) -> int:
        return len(self.score)

    @property
    def is_binary(self) -> bool:
        """Whether there are two classes, with the score of the positive one."""
        return self.score.shape[1] == 1

    def take(self, index: slice | np.ndarray) -> ScoredRows:
        """Return some of the rows; without labels unless all of these are known."""
        label = None if self.label is None else self.label[index]
        if label is not None and (label < 0).any():
            label = None
        features = None if self.features is None else self.features[index]
        return ScoredRows(self.score[index], self.prediction[index], label, features)

    def certain(self) -> Float[np.ndarray, "rows scores"]:
        """Return the true classes as probabilities of 0 and 1.

        Raises:
            ValueError: if there are no labels.
        """
        if self.label is None:
            raise ValueError("rows must have labels")
        if self.is_binary:
            return self.label[:, None].astype(np.float64)
        return (self.label[:, None] == np.arange(self.score.shape[1])).astype(np.float64)
