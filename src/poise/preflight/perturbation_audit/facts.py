"""Everything that a perturbation grid measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from poise.preflight.perturbation_audit.recipe import final_loss, late

_KEPT = 0.5  # of the fall in loss of the base; less counts as failing


@dataclass(frozen=True, slots=True)
class GridFacts:
    """All that a grid measured.

    Attributes:
        runs: training losses by condition, NaN from the step on at which a run diverged.
        seeds: of the runs.
        lr: peak learning rate of the base.
        steps: optimizer steps of a run.
        warmup: of them, the linear warm-up.
        clip: largest norm of the gradient; ``None`` for no limit.
    """

    runs: Mapping[str, Float[np.ndarray, "seeds steps"]]
    seeds: Sequence[int]
    lr: float
    steps: int
    warmup: int
    clip: float | None

    @property
    def outcomes(self) -> list[Outcome]:
        """How the conditions ended, in their order."""
        finals = {condition: np.array([final_loss(run) for run in losses]) for condition, losses in self.runs.items()}
        base = self.runs["base"]
        fall = base[:, 0] - finals["base"]
        learned = fall > 2 * np.array([late(run).std() for run in base])  # else it may be the noise of batches
        # A comparison with NaN is false: a run that diverged fails, and with a base that did not learn all do.
        return [Outcome(c, final, ~((base[:, 0] - final >= _KEPT * fall) & learned)) for c, final in finals.items()]

    @property
    def base(self) -> Outcome:
        """How the base ended."""
        return next(outcome for outcome in self.outcomes if outcome.condition == "base")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a condition ended, by seed.

    Attributes:
        condition: its name.
        final: final losses; NaN where a run diverged.
        failed: whether a run failed.
    """

    condition: str
    final: Float[np.ndarray, " seeds"]
    failed: Bool[np.ndarray, " seeds"]

    @property
    def words(self) -> str:
        """The outcome in words."""
        failed, seeds = int(self.failed.sum()), len(self.failed)
        return "trains" if not failed else f"fails on {failed} of {seeds} seeds" if seeds > 1 else "fails"
