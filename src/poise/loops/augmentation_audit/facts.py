"""What the audit of synthetic rows measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from poise.evidence.estimate import Estimate
from poise.evidence.mean_interval import mean_interval

SYNTHETIC, JITTER, REPEATED = "synthetic rows", "real rows with noise", "real rows repeated"
FEWEST_ROWS = 100  # with fewer, the standard error of an error rate may exceed five points


@dataclass(frozen=True, slots=True, eq=False)
class AugmentationFacts:
    """All that the audit measured.

    Attributes:
        ratios: synthetic rows for each real one.
        plain: held-out error without further rows, by split.
        plain_train: error on the training rows without further rows.
        error: by source, held-out error by ratio and split.
        train: by source, error on all rows that were trained on.
        fewer: held-out error with half of the real rows, by split.
        rows: number of real rows.
        train_rows: of them, trained on in a split.
        duplicates: fraction of the generator's rows that are training rows, by split.
        diversity: total variance of the generator's rows over that of the training rows, by split.
        distance: how well a classifier tells them from held-out rows, 0 to 1; NaN with too few rows.
        refitted: whether the generator was fitted to each split.
        missing: splits that were not finished.
    """

    ratios: Sequence[float]
    plain: Float[np.ndarray, " splits"]
    plain_train: Float[np.ndarray, " splits"]
    error: Mapping[str, Float[np.ndarray, "ratios splits"]]
    train: Mapping[str, Float[np.ndarray, "ratios splits"]]
    fewer: Float[np.ndarray, " splits"]
    rows: int
    train_rows: int
    duplicates: Float[np.ndarray, " splits"]
    diversity: Float[np.ndarray, " splits"]
    distance: Float[np.ndarray, " splits"]
    refitted: bool
    missing: int

    def gain(self, source: str, ratio: int) -> Estimate:
        """Return by how much further rows lower the held-out error, with the 95 % interval over splits.

        Args:
            source: ``SYNTHETIC``, ``JITTER`` or ``REPEATED``.
            ratio: position in ``ratios``.
        """
        return mean_interval(self.plain - self.error[source][ratio])

    @property
    def best(self) -> int | None:
        """Position of the ratio with the largest gain whose interval lies above 0; None if there is none."""
        gains = [self.gain(SYNTHETIC, i) for i in range(len(self.ratios))]
        sure = [i for i, gain in enumerate(gains) if gain.low > 0]
        return max(sure, key=lambda i: gains[i].mean) if sure else None

    @property
    def too_few(self) -> bool:
        """Whether there are too few rows to tell."""
        return self.rows < FEWEST_ROWS

    def gap(self, ratio: int | None) -> float:
        """Return held-out less training error, mean over splits; without further rows for None."""
        if ratio is None:
            return float((self.plain - self.plain_train).mean())
        return float((self.error[SYNTHETIC][ratio] - self.train[SYNTHETIC][ratio]).mean())
