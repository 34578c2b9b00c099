"""Compare the runs of a trial."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from poise.doctor.events import find_events
from poise.doctor.trial.plan import Plan, arm_name
from poise.doctor.trial.runs import ArmResult
from poise.tools.json_numbers import json_plain

if TYPE_CHECKING:
    from poise.evidence import PairedComparison, RateComparison, Verdict

SMALLEST_EFFECT = 0.01
"""A loss has to be lower by more than this fraction before it counts as better, or higher as worse."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the trial found for one remedy (or of several that act together).

    Args:
        remedies: their specs.
        verdict: a verdict of :mod:`poise.evidence`; ``None`` if no pair of runs could be compared.
        steps: number of steps after which the losses were compared; the smallest over the pairs.
        losses: comparison of the final losses, seed by seed; ``None`` without a pair.
        divergences: comparison of how many runs diverged or stopped early; ``None`` without a pair.
        reason: why there is no verdict; empty if there is one.
    """

    remedies: tuple[str, ...]
    verdict: Verdict | None
    steps: int
    losses: PairedComparison | None
    divergences: RateComparison | None
    reason: str = ""

    @property
    def name(self) -> str:
        """Specs of the remedies."""
        return arm_name(self.remedies)

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        if self.losses is None or self.divergences is None:
            return f"{self.name}: not compared, because {self.reason}."
        a, b, rates = self.losses.mean_control, self.losses.mean_treated, self.divergences
        return (
            f"{self.name}: {self.verdict}. Loss after {self.steps} steps {a:.4g} untreated, {b:.4g} treated "
            f"({self.losses.n} {'pair' if self.losses.n == 1 else 'pairs'}); diverged {rates.events_a} of {rates.n_a} "
            f"untreated, {rates.events_b} of {rates.n_b} treated."
        )


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What a trial found.

    Args:
        plan: what was run.
        folder: where the runs are.
        arms: the runs, in the order of the plan.
        comparisons: one per remedy, in the order in which they were given.
        notices: what limits the trial, in sentences.
    """

    plan: Plan
    folder: Path
    arms: list[ArmResult]
    comparisons: list[Comparison]
    notices: list[str] = field(default_factory=list)

    @property
    def ranked(self) -> list[Comparison]:
        """The comparisons, best first: by verdict, then by improvement; those without a verdict last."""
        return sorted(self.comparisons, key=_rank)

    @property
    def best(self) -> Comparison | None:
        """The remedy that helps most; ``None`` if none helps."""
        first = self.ranked[0]
        return first if first.verdict in ("proved", "helps, not proved") else None

    def runs(self, remedies: Sequence[str] = ()) -> list[ArmResult]:
        """Return the runs with these remedies, by seed; the untreated ones by default."""
        return [result for result in self.arms if result.arm.remedies == tuple(remedies)]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types (infinite intervals become text)."""
        masking = self.plan.masking
        return {
            "script": masking.text(self.plan.script),
            "args": masking.args,
            "seeds": self.plan.seeds,
            "folder": masking.text(str(self.folder)),
            "best": self.best.name if self.best else None,
            "comparisons": [
                masking.tree(json_plain({**asdict(c), "name": c.name, "sentence": c.sentence}))
                for c in self.comparisons
            ],
            "arms": [r.to_dict() for r in self.arms],
            "notices": masking.tree(self.notices),
        }


def compare(plan: Plan, out: Path, arms: list[ArmResult]) -> TrialResult:
    """Compare the runs of a plan."""
    untreated = [result for result in arms if not result.arm.remedies]
    same = _all_equal(untreated)
    kept = [result for result in arms if not (same and result.arm.seed)]
    control = [result for result in kept if not result.arm.remedies]
    comparisons = [
        _compare_remedy(remedies, control, [r for r in kept if r.arm.remedies == remedies], plan.steps)
        for remedies in plan.remedies
    ]
    return TrialResult(plan, out, arms, comparisons, _notices(arms, same))


@dataclass(frozen=True, slots=True)
class _Pair:
    steps: int
    losses: tuple[float, float]
    diverged: tuple[bool, bool]


def _compare_remedy(
    remedies: tuple[str, ...], untreated: list[ArmResult], treated: list[ArmResult], steps: int | None
) -> Comparison:
    from poise.evidence import compare_event_rates, compare_paired

    dropped = next((result.dropped for result in treated if result.dropped), "")
    if dropped:
        return Comparison(remedies, None, 0, None, None, f"the remedy could not be applied ({dropped})")
    pairs = [p for a, b in zip(untreated, treated, strict=True) if (p := _pair(a, b, steps)) is not None]
    if not pairs:
        return Comparison(remedies, None, 0, None, None, _why_no_pair(untreated, treated))
    losses = compare_paired(
        [p.losses[0] for p in pairs], [p.losses[1] for p in pairs], lower_is_better=True, min_effect=SMALLEST_EFFECT
    )
    n = len(pairs)
    rates = compare_event_rates(sum(p.diverged[0] for p in pairs), n, sum(p.diverged[1] for p in pairs), n)
    return Comparison(
        remedies, stronger(losses.verdict, rates.verdict), min(p.steps for p in pairs), losses, rates, reason=""
    )


def _strength(verdict: Verdict) -> int:
    # Imported here: the comparisons need scipy.stats, which takes a second that `poise run` would spend for nothing.
    from poise.evidence import VERDICTS

    return VERDICTS.index(verdict)


def stronger(loss: Verdict, divergences: Verdict) -> Verdict:
    """Return the stronger of two verdicts, unless one of them is *hurts*: harm in one respect is harm."""
    both = (loss, divergences)
    return "hurts" if "hurts" in both else min(both, key=_strength)


def _pair(a: ArmResult, b: ArmResult, steps: int | None) -> _Pair | None:
    equal = _equal_steps(a, b)
    equal = equal if steps is None else min(equal, steps)
    first = [x for x in (_first_finite(a), _first_finite(b)) if x is not None]
    if not equal or not first or not (a.steps and b.steps):
        return None
    return _Pair(
        equal,
        (final_loss(a, equal, max(first)), final_loss(b, equal, max(first))),
        (_diverged(a, equal), _diverged(b, equal)),
    )


def _equal_steps(a: ArmResult, b: ArmResult) -> int:
    # A run that failed early does not limit the comparison, unless both did.
    whole = [result.steps for result in (a, b) if not result.exit_code]
    return min(whole or [a.steps, b.steps])


def _stopped_early(result: ArmResult, steps: int) -> bool:
    return result.exit_code != 0 and result.steps < steps


def final_loss(result: ArmResult, steps: int, start: float) -> float:
    """Return the mean loss over the last tenth of ``steps`` (at least 5 steps), at most ``start``.

    ``start`` is what a run counts as that stopped before, is not finite there, or is worse than where it began.
    """
    assert result.record is not None
    loss = result.record["loss"].until(steps - 1)
    last = loss.values[loss.steps >= steps - max(5, math.ceil(0.1 * steps))]
    if _stopped_early(result, steps) or not len(last) or not np.isfinite(last).all():
        return start
    return min(float(last.mean()), start)


def _diverged(result: ArmResult, steps: int) -> bool:
    assert result.record is not None
    events = find_events(result.record.until(steps - 1))
    return _stopped_early(result, steps) or any(event.kind == "divergence" for event in events)


def _first_finite(result: ArmResult) -> float | None:
    values = result.record["loss"].values if result.record is not None else np.empty(0)
    finite = values[np.isfinite(values)]
    return float(finite[0]) if len(finite) else None


def _why_no_pair(untreated: list[ArmResult], treated: list[ArmResult]) -> str:
    for name, results in (("untreated", untreated), ("treated", treated)):
        if not any(result.steps for result in results):
            failed = next((result.failed for result in results if result.failed), "")
            return f"no {name} run recorded a loss" + (f" ({failed})" if failed else "")
    return "no seed has a finite loss both untreated and treated"


def _all_equal(untreated: list[ArmResult]) -> bool:
    losses = [result.record["loss"].values for result in untreated if result.record is not None and result.steps]
    return len(losses) == len(untreated) > 1 and all(
        np.array_equal(losses[0], other, equal_nan=True) for other in losses[1:]
    )


def _notices(arms: list[ArmResult], same: bool) -> list[str]:
    notices = [result.failed for result in arms if result.failed]
    if same:
        notices.insert(
            0,
            "The seeds change nothing: the untreated losses are identical, step by step. Only the first seed counts "
            "(n = 1), and a single pair proves nothing. Does the script shuffle, initialise or drop out at random?",
        )
    for result in arms:
        said = [] if result.record is None else result.record.meta.get("notes", [])
        notices += [f"{result.arm.name}, seed {result.arm.seed}: {note}." for note in said]
    if any(result.record is not None and len(result.record.timelines) > 1 for result in arms):
        notices.append("The script has several optimizers; the losses compared are those of the first.")
    return notices


def _rank(comparison: Comparison) -> tuple[int, float]:
    if comparison.verdict is None or comparison.losses is None:
        return sys.maxsize, 0.0
    return _strength(comparison.verdict), -comparison.losses.improvement
