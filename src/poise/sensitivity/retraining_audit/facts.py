"""What the audit of retraining measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from poise.evidence.estimate import Estimate
from poise.evidence.intervals import clopper_pearson
from poise.evidence.mean_interval import mean_interval
from poise.sensitivity.churn import Churn

SEED, ORDER, DATA = "seed", "row order", "rows left out"


@dataclass(frozen=True, slots=True, eq=False)
class RetrainingFacts:
    """All that the audit measured.

    Attributes:
        model: name of the estimator.
        is_classifier: whether decisions are labels.
        churn: by cause, the disagreement of retrainings with the base.
        rates: by cause, the fraction of decisions that differ from the base, one for each retraining.
        same_seed: the fraction that differs between two trainings with the same seed.
        has_seed: whether the estimator takes a seed.
        bag_churn: disagreement of averages over bags, by cause; empty if they were not trained.
        n_bags: members of the average.
        guarantee: change of a probability (or of a prediction, in units of the targets' range) that at most a tenth of
            the rows can cause when left out, for any data; of the average.
        carrying_rows: the fewest training rows that carry half of the squared change of the average, worst first.
        rows: number of training rows.
        test_rows: number of rows compared.
        leave_out: fraction of the rows left out.
        tolerance: for regressors, in standard deviations of the targets.
        cost_per_flip: in the user's unit.
        missing: trainings that were not finished.
    """

    model: str
    is_classifier: bool
    churn: Mapping[str, Churn]
    rates: Mapping[str, Float[np.ndarray, " retrainings"]]
    same_seed: float
    has_seed: bool
    bag_churn: Mapping[str, Churn]
    n_bags: int
    guarantee: float
    carrying_rows: Int[np.ndarray, " rows"]
    rows: int
    test_rows: int
    leave_out: float
    tolerance: float
    cost_per_flip: float | None
    missing: Sequence[str]

    def rate(self, cause: str) -> Estimate:
        """Return the fraction of decisions that flip, with its 95 % interval over retrainings."""
        found = mean_interval(self.rates[cause])
        return Estimate(found.mean, max(0.0, found.low), min(1.0, found.high))

    @property
    def floor(self) -> float:
        """Upper end of the 95 % interval, over test rows, of what two trainings with the same seed differ by."""
        differing = round(self.same_seed * self.test_rows)
        return clopper_pearson(differing, self.test_rows)[1] if differing else 0.0
