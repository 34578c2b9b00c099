"""Everything that the audit of an effect measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from poise.causal.average_effect import AverageEffect
from poise.causal.effect_audit.few_rows import Change, Z


@dataclass(frozen=True, slots=True)
class Flip:
    """How few rows have to go for a conclusion to change.

    Attributes:
        change: of the conclusion.
        predicted: rows by the influence function; ``None`` if half of all rows do not suffice.
        dropped: rows that were left out in the last refit; 0 without a refit.
        estimate: of that refit.
        stderr: of that refit.
        happened: whether the conclusion changed in it.
        units: what was left out: ``"rows"`` or ``"groups"``.
        of: how many of these there are.
        first: numbers of some of them, most influential first.
    """

    change: Change
    predicted: int | None
    dropped: int = 0
    estimate: float = np.nan
    stderr: float = np.nan
    happened: bool = False
    units: str = "rows"
    of: int = 0
    first: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Overlap:
    """How much the arms have in common.

    Attributes:
        effective: effective sample size of inverse-propensity weights.
        clipped: rows with a propensity outside of the clip.
        clip: smallest propensity.
        lowest: smallest propensity of the treated arm.
        highest: the largest.
        top: part of the inverse-propensity weight in the 1 % of rows with most of it.
    """

    effective: float
    clipped: int
    clip: float
    lowest: float
    highest: float
    top: float


@dataclass(frozen=True, slots=True)
class ConstantComparison:
    """Whether effects that vary predict better than one effect for all, in rows that neither was fitted on.

    Attributes:
        loss: mean squared error of outcome residuals, with effects that vary.
        constant_loss: the same with one effect.
        difference: the first less the second; above 0 the constant is better.
        stderr: of the difference, of paired rows.
        spread: standard deviation of the effects.
    """

    loss: float
    constant_loss: float
    difference: float
    stderr: float
    spread: float


@dataclass(frozen=True, slots=True, eq=False)
class EffectFacts:
    """All that an audit of an effect measured.

    Attributes:
        estimator: name of what was audited.
        rows: number of rows.
        average: with the first seed.
        seeds: that it was fitted with.
        by_seed: estimates of these.
        stderr_by_seed: their standard errors.
        flips: what it takes to change a conclusion.
        overlap: of the arms; ``None`` if not measured.
        learners: doubly robust averages by the learners of their nuisances.
        controls: simple estimates by name.
        constant: whether the effects vary; ``None`` if not measured.
        forwarded: what the object's own sensitivity analysis said, by its name.
        not_checked: what was not checked, and why.
        fits: how often the estimator was fitted.
        seconds: how long everything took.
    """

    estimator: str
    rows: int
    average: AverageEffect
    seeds: tuple[int, ...]
    by_seed: Float[np.ndarray, " seeds"]
    stderr_by_seed: Float[np.ndarray, " seeds"]
    flips: tuple[Flip, ...] = ()
    overlap: Overlap | None = None
    learners: Mapping[str, AverageEffect] = field(default_factory=dict)
    controls: Mapping[str, AverageEffect] = field(default_factory=dict)
    constant: ConstantComparison | None = None
    forwarded: Mapping[str, str] = field(default_factory=dict)
    not_checked: Mapping[str, str] = field(default_factory=dict)
    fits: int = 0
    seconds: float = 0.0

    @property
    def stderr(self) -> float:
        """Standard error that differences are measured in: that of the estimate, or else of the learners' averages."""
        if self.average.stderr > 0:
            return self.average.stderr
        known = [average.stderr for average in self.learners.values() if average.stderr > 0]
        return float(np.median(known)) if known else np.nan

    @property
    def significant(self) -> bool:
        """Whether the 95 % interval leaves 0 out."""
        return abs(self.average.estimate) > Z * self.average.stderr

    @property
    def seed_spread(self) -> float:
        """Standard deviation over seeds, in standard errors; NaN with one seed."""
        return float(np.std(self.by_seed, ddof=1)) / self.stderr if len(self.by_seed) > 1 else np.nan

    @property
    def learner_spread(self) -> float:
        """Largest less smallest average of all learners, in standard errors; NaN with one."""
        values = [average.estimate for average in self.learners.values()]
        return (max(values) - min(values)) / self.stderr if len(values) > 1 else np.nan

    def flip(self, change: Change) -> Flip | None:
        """Return what it takes for one change."""
        return next((flip for flip in self.flips if flip.change == change), None)
