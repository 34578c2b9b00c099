"""Everything that the audit of an update measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

UNTREATED = "as it is"


@dataclass(frozen=True, slots=True, eq=False)
class UpdateRun:
    """One run of the update.

    Args:
        steps: updates before each evaluation; the first is 0.
        old: score on the held-out old data at each.
        new: on the held-out new data.
        seconds: of training, without evaluation.
    """

    steps: Int[np.ndarray, " evaluations"]
    old: Float[np.ndarray, " evaluations"]
    new: Float[np.ndarray, " evaluations"]
    seconds: float

    @property
    def minimum(self) -> float:
        """Lowest score on old data, update 0 included."""
        return float(self.old.min())


@dataclass(frozen=True, slots=True)
class Conflict:
    """How the update's gradients and those of old data point to each other, along one untreated run.

    Args:
        first: cosine at the first update.
        fraction: of the updates up to the minimum of the old score, in which they oppose each other.
        ratio: norm of the old data's gradient over that of the update at the first update.
    """

    first: float
    fraction: float
    ratio: float


@dataclass(frozen=True, slots=True, eq=False)
class UpdateFacts:
    """All that an audit measured.

    Args:
        model: name of the model's class.
        metric: name of the score; higher is better.
        before: score on old data of the model as it was served: before the update, with the outputs of new classes left
            out.
        before_widened: the same with the outputs of new classes.
        new_classes: classes that are in the new data only.
        samples: held-out samples of the old and of the new data that were evaluated.
        every: updates between two evaluations.
        runs: by treatment, one run for each seed; the update as it is under :data:`UNTREATED`.
        experiments: treatments that are no remedies but decide about a cause, by cause.
        remedies: names of documented remedies by treatment.
        tuned: strengths that were chosen on another seed, in words, by treatment.
        conflict: gradients; ``None`` if they were not measured.
        lag: of the average that is served, score on new data minus that of the trained weights over the second half;
            ``None`` if no average was tried.
        decay: of that average.
        allowed_drop: what the old score may lose.
        not_checked: reasons, by treatment or cause.
        cost: what the audit took, in words.
        seeds: seeds.
    """

    model: str
    metric: str
    before: float
    before_widened: float
    new_classes: tuple[int, ...]
    samples: tuple[int, int]
    every: int
    runs: dict[str, tuple[UpdateRun, ...]]
    experiments: dict[str, str]
    remedies: dict[str, str]
    tuned: dict[str, str]
    conflict: Conflict | None
    lag: float | None
    decay: float
    allowed_drop: float
    not_checked: dict[str, str]
    cost: str
    seeds: tuple[int, ...]

    @property
    def untreated(self) -> tuple[UpdateRun, ...]:
        """The runs of the update as it is."""
        return self.runs[UNTREATED]

    @property
    def depth(self) -> float:
        """How far the old score falls below what it was, in the mean over seeds."""
        return self.before - float(np.mean(self.minima(UNTREATED)))

    @property
    def breaks(self) -> bool:
        """Whether that is more than allowed."""
        return self.depth > self.allowed_drop

    def minima(self, treatment: str) -> Float[np.ndarray, " seeds"]:
        """Return the lowest old score of each seed."""
        return np.array([run.minimum for run in self.runs[treatment]])

    def ends(self, treatment: str) -> tuple[float, float]:
        """Return the mean scores at the end, on old and on new data."""
        runs = self.runs[treatment]
        return float(np.mean([run.old[-1] for run in runs])), float(np.mean([run.new[-1] for run in runs]))

    def time_ratio(self, treatment: str) -> float:
        """Return the training time over that of the update as it is, as a median over seeds."""
        pairs = zip(self.runs[treatment], self.untreated, strict=False)
        return float(np.median([a.seconds / b.seconds if b.seconds else math.nan for a, b in pairs]))

    def lift(self, treatment: str) -> float:
        """Return how much higher the minimum is than untreated, as a mean over the seeds that both ran."""
        n = len(self.runs.get(treatment, ()))
        return float(np.mean(self.minima(treatment) - self.minima(UNTREATED)[:n])) if n else math.nan

    def lifts(self, treatment: str) -> float:
        """Return the probability that a treatment lifts the minimum; 0.5 from a single seed, 0 if it was not run."""
        from poise.evidence import compare_paired

        if not self.runs.get(treatment):
            return 0.0
        minima = self.minima(treatment)
        return compare_paired(self.minima(UNTREATED)[: len(minima)], minima, lower_is_better=False).p_better

    def keeps(self, treatment: str) -> bool:
        """Whether a treatment stays within the allowed drop, on old data always and on new data at the end."""
        new = self.ends(UNTREATED)[1]
        old_kept = float(np.mean(self.minima(treatment))) >= self.before - self.allowed_drop
        return old_kept and self.ends(treatment)[1] >= new - self.allowed_drop

    def cheapest(self) -> str | None:
        """Return the remedy within the allowed drop that takes the least time; ``None`` if there is none."""
        kept = [name for name in self.remedies if name in self.runs and self.keeps(name)]
        return min(kept, key=lambda name: (round(self.time_ratio(name), 1), -self.lift(name))) if kept else None
