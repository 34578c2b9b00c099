"""What the audit of a feedback loop measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from poise.evidence.estimate import Estimate
from poise.evidence.mean_interval import mean_interval

LIKELIEST, DRAWN, TRUE, MORE_HUMAN = "likeliest label", "drawn label", "true label", "more human rows"


@dataclass(frozen=True, slots=True, eq=False)
class LoopFacts:
    """All that the audit measured.

    Attributes:
        statistic: its name.
        truth: the statistic of the true labels of the test rows, by seed.
        values: by loop, the statistic of the predicted labels by seed and round.
        accuracy: by loop, the accuracy on the test rows by seed and round.
        classes: by loop, the number of classes that are predicted at the last round, fewest of all seeds.
        n_classes: number of classes.
        bound: largest bias at each round by the calibration error on shifted training sets.
        delta: that calibration error.
        delta_unshifted: calibration error on the training set as it is.
        m: human rows per round.
        k: model-labelled rows per round.
        more_human: human rows per round in the loop with more of them.
        n_start: rows at the start.
        tolerance: drift that matters.
        missing: loops that were not finished or cannot run, with the reason.
    """

    statistic: str
    truth: Float[np.ndarray, " seeds"]
    values: Mapping[str, Float[np.ndarray, "seeds rounds"]]
    accuracy: Mapping[str, Float[np.ndarray, "seeds rounds"]]
    classes: Mapping[str, int]
    n_classes: int
    bound: Float[np.ndarray, " rounds"]
    delta: float
    delta_unshifted: float
    m: int
    k: int
    more_human: int
    n_start: int
    tolerance: float
    missing: Sequence[str]

    def bias(self, loop: str) -> Float[np.ndarray, "seeds rounds"]:
        """Return the statistic less that of the true labels."""
        return self.values[loop] - self.truth[:, None]

    def amplification(self, loop: str) -> Estimate:
        """Return by how much the absolute bias grows from round 0 to the last, with its 95 % interval over seeds."""
        bias = np.abs(self.bias(loop))
        return mean_interval(bias[:, -1] - bias[:, 0])

    def drift(self, loop: str) -> Estimate:
        """Return by how much the statistic changes from round 0 to the last, with its 95 % interval over seeds."""
        return mean_interval(self.values[loop][:, -1] - self.values[loop][:, 0])
