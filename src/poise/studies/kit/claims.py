"""A claim of a paper: its text, the paper's figure, the rule that decides it, and what is measured for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_args

from poise.studies.kit.rules import ClaimVerdict, Condition, Rule
from poise.studies.kit.seed_interval import Interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLAIM_VERDICTS: tuple[ClaimVerdict, ...] = get_args(ClaimVerdict)

Results = TypeVar("Results")


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured for one claim.

    Args:
        text: the measured figure in words, to stand beside the paper's; or why it was not measured.
        numbers: what the claim's rule reads. Empty if the claim was not measured.
        by_seed: values of the single seeds, in the order of the seeds: of the numbers that the rule judges over seeds
            (a number of the same name must be their mean) and of those that ``holds_in`` reads. ``bool`` values are
            yes/no outcomes.
        intervals: 95 % intervals of numbers that the rule judges over seeds and that are no means of values by seed,
            from ``poise.studies.kit.bootstrap``.
    """

    text: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    by_seed: Mapping[str, Sequence[float] | NDArray[Any]] = field(default_factory=dict)
    intervals: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Claim(Generic[Results]):
    """One claim of a paper.

    Args:
        id: short name, unique in its study, for example ``"same-side"``.
        text: the claim in one plain sentence.
        paper: the paper's figure for it, for example ``"BF = 2359"``.
        protocol: how it is tested, as far as the rule does not say it: what is compared, at which settings.
        rule: turns the measured numbers into a verdict. ``None`` for a claim that is not tested; ``protocol`` says why.
        measure: reads the claim's numbers from the results of the study's experiment. It never sees a verdict.
        without_seeds: for a claim whose rule judges nothing over seeds, why no interval over seeds is needed: because
            no seeds enter, for example.
    """

    id: str
    text: str
    paper: str
    protocol: str
    rule: Rule | None
    measure: Callable[[Results], Measured]
    without_seeds: str = ""

    @property
    def test(self) -> str:
        """In words, how the claim is tested, and when it counts as reproduced and when as refuted."""
        if self.rule is None:
            return self.protocol
        reason = f"No interval over seeds: {self.without_seeds}" if self.without_seeds else ""
        return f"{self.protocol} {self.rule.words} {reason}".strip()

    def judge(self, results: Results) -> ClaimResult:
        """Measure the claim and decide it.

        Args:
            results: what the study's experiment returned.

        Raises:
            ValueError: if a number is NaN, or numbers were measured for a claim without a rule.
        """
        measured = self.measure(results)
        numbers = {name: float(value) for name, value in measured.numbers.items()}
        by_seed = {name: _seed_values(values) for name, values in measured.by_seed.items()}
        intervals = {name: (float(low), float(high)) for name, (low, high) in measured.intervals.items()}
        undefined = [name for name, value in numbers.items() if math.isnan(value)]
        undefined += [
            name for name, values in [*by_seed.items(), *intervals.items()] if any(math.isnan(v) for v in values)
        ]
        if undefined:  # every comparison with NaN is false, so a rule would quietly say "refuted" or worse
            raise ValueError(f"claim {self.id!r} cannot be judged: {sorted(set(undefined))} are NaN")
        if numbers and self.rule is None:
            raise ValueError(f"claim {self.id!r} has no rule, so nothing may be measured for it, got {numbers}")
        if not numbers or self.rule is None:
            return ClaimResult(self, measured.text, "not tested", numbers, by_seed, intervals)
        for name in (set(self.rule.over_seeds) & set(numbers) & set(by_seed)) - set(intervals):
            mean = sum(by_seed[name]) / len(by_seed[name])
            if not (mean == numbers[name] or math.isclose(mean, numbers[name], rel_tol=1e-6, abs_tol=1e-9)):
                raise ValueError(
                    f"claim {self.id!r}: {name!r} is judged over seeds and must be the mean of its values by seed, "
                    f"{mean}, got {numbers[name]}"
                )
        verdict = self.rule.verdict(numbers, by_seed, intervals)
        note = self.rule.note(by_seed, intervals) if verdict == "partly" else ""
        return ClaimResult(self, measured.text, verdict, numbers, by_seed, intervals, note)


def _seed_values(values: Sequence[float] | NDArray[Any]) -> tuple[float, ...]:
    """Return plain numbers, or plain ``bool`` where all are yes/no outcomes."""
    outcomes = all(isinstance(value, bool) or str(getattr(value, "dtype", "")) == "bool" for value in values)
    return tuple(bool(value) if outcomes else float(value) for value in values)


def claim(
    id: str,
    text: str,
    *,
    paper: str,
    protocol: str = "",
    reproduced: Condition | None = None,
    refuted: Condition | None = None,
    rule: Rule | None = None,
    over_seeds: Sequence[str] = (),
    unit: str = "seeds",
    without_seeds: str = "",
) -> Callable[[Callable[[Results], Measured]], Claim[Results]]:
    """Return a decorator that makes a claim of the function that measures it.

    Args:
        id: short name, unique in its study.
        text: the claim in one plain sentence.
        paper: the paper's figure for it.
        protocol: how it is tested, as far as the conditions do not say it.
        reproduced: when it is reproduced; with ``refuted`` a short form of ``rule``.
        refuted: when it is refuted; whenever it is not reproduced by default.
        rule: a rule of another shape. Without conditions and rule the claim is not tested.
        over_seeds: names of numbers that the conditions ask of the interval over seeds; see ``Rule``.
        unit: what the interval is over, if not seeds; see ``Rule``.
        without_seeds: why no interval over seeds is needed, where ``over_seeds`` names nothing.
    """
    if reproduced is not None:
        rule = Rule(reproduced, refuted, over_seeds=tuple(over_seeds), unit=unit)

    def decorate(measure: Callable[[Results], Measured]) -> Claim[Results]:
        return Claim(id, text, paper, protocol, rule, measure, without_seeds)

    return decorate


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """A claim after the experiment.

    Args:
        claim: the claim.
        text: the measured figure in words.
        verdict: what its rule says of the numbers; *not tested* without numbers.
        numbers: measured numbers by name.
        by_seed: values of single seeds by name.
        intervals: intervals by name, of numbers judged over seeds that are no means of values by seed.
        note: for a verdict of *partly*, the intervals over seeds on which it was made.
    """

    claim: Claim[Any]
    text: str
    verdict: ClaimVerdict
    numbers: dict[str, float]
    by_seed: dict[str, tuple[float, ...]] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)
    note: str = ""

    @property
    def measured(self) -> str:
        """The measured figure in words, with the intervals that left the verdict open."""
        return f"{self.text}; {self.note}" if self.note else self.text

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; infinities become strings that ``float`` reads back."""
        words = {"id": self.claim.id, "text": self.claim.text, "paper": self.claim.paper, "test": self.claim.test}
        entry: dict[str, Any] = {**words, "ours": self.measured, "verdict": self.verdict}
        entry["numbers"] = {name: _json_number(value) for name, value in self.numbers.items()}
        for key, listed in (("by_seed", self.by_seed), ("intervals", self.intervals)):
            if listed:
                entry[key] = {name: [_json_number(v) for v in values] for name, values in listed.items()}
        return entry


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
