"""Verdict rules: conditions on measured numbers, each of which says in words what it asks for.

A condition is made by :func:`at_least`, :func:`at_most`, :func:`above`, :func:`below`, :func:`equal_to`,
:func:`within`, :func:`beyond`, :func:`between`, :func:`holds_in` or :func:`where`; ``&`` and ``|`` join conditions. A
:class:`Rule` has one condition for *reproduced* and one for *refuted*.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

ClaimVerdict = Literal["reproduced", "partly", "refuted", "not tested"]

Numbers = Mapping[str, float]
BySeed = Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Condition:
    """What may hold of measured numbers.

    Args:
        words: the condition for a reader, such as ``"error ≤ 1e-8"``.
        holds: decides, from the numbers and from the values by seed.
        bounds: the numbers it reads, each with the bounds that it is compared with.
        joined_by: the word that joins the parts of ``words``; empty where there is one part.
    """

    words: str
    holds: Callable[[Numbers, BySeed], bool]
    bounds: Mapping[str, tuple[float, ...]]
    joined_by: Literal["", "and", "or"] = ""

    def __and__(self, other: Condition) -> Condition:
        return _join("and", self, other, lambda n, s: self.holds(n, s) and other.holds(n, s))

    def __or__(self, other: Condition) -> Condition:
        return _join("or", self, other, lambda n, s: self.holds(n, s) or other.holds(n, s))


def at_least(name: str, bound: float | str, label: str = "", times: float = 1.0) -> Condition:
    """Return the condition that a number is at least as large as a bound.

    Args:
        name: of the number.
        bound: a value, or the name of another number.
        label: what the reader is told that the number is; its name without underscores by default.
        times: factor of the bound.
    """
    return _compare(name, bound, label, times, "≥", lambda value, limit: value >= limit)


def at_most(name: str, bound: float | str, label: str = "", times: float = 1.0) -> Condition:
    """Return the condition that a number is at most as large as a bound; see :func:`at_least`."""
    return _compare(name, bound, label, times, "≤", lambda value, limit: value <= limit)


def above(name: str, bound: float | str, label: str = "", times: float = 1.0) -> Condition:
    """Return the condition that a number is larger than a bound; see :func:`at_least`."""
    return _compare(name, bound, label, times, ">", lambda value, limit: value > limit)


def below(name: str, bound: float | str, label: str = "", times: float = 1.0) -> Condition:
    """Return the condition that a number is smaller than a bound; see :func:`at_least`."""
    return _compare(name, bound, label, times, "<", lambda value, limit: value < limit)


def equal_to(name: str, bound: float | str, label: str = "") -> Condition:
    """Return the condition that a number equals a value or another number; see :func:`at_least`."""
    return _compare(name, bound, label, 1.0, "=", lambda value, limit: value == limit)


def within(name: str, tolerance: float, target: float, label: str = "", relative: bool = False) -> Condition:
    """Return the condition that a number is no further from a target than a tolerance.

    Args:
        name: of the number.
        tolerance: largest distance, in units of the number or, if ``relative``, of the target.
        target: the figure to be met.
        label: what the reader is told that the number is.
        relative: whether the distance is that of their ratio from 1.
    """
    return _distance(name, tolerance, target, label, relative, "within", lambda distance: distance <= tolerance)


def beyond(name: str, tolerance: float, target: float, label: str = "", relative: bool = False) -> Condition:
    """Return the condition that a number is further from a target than a tolerance; see :func:`within`."""
    return _distance(name, tolerance, target, label, relative, "not within", lambda distance: distance > tolerance)


def between(name: str, low: float, high: float, label: str = "") -> Condition:
    """Return the condition that a number lies in a closed range."""
    words = f"{_figure(low)} ≤ {_label(name, label)} ≤ {_figure(high)}"
    return Condition(words, lambda numbers, by_seed: low <= numbers[name] <= high, {name: (low, high)})


def holds_in(condition: Condition, fraction: float = 1.0) -> Condition:
    """Return the condition that another one holds in a fraction of the seeds, judged by the values by seed.

    Args:
        condition: of one seed; it reads ``Measured.by_seed`` as if these were the numbers.
        fraction: of seeds that is needed, above 0 and at most 1.

    Raises:
        ValueError: if ``fraction`` is outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}")

    def holds(numbers: Numbers, by_seed: BySeed) -> bool:
        names = list(condition.bounds)
        seeds = [dict(zip(names, row, strict=True)) for row in zip(*(by_seed[name] for name in names), strict=True)]
        return sum(condition.holds(seed, {}) for seed in seeds) >= fraction * len(seeds) - 1e-9

    place = "every seed" if fraction == 1 else f"at least {100 * fraction:.3g} % of the seeds"
    return Condition(f"in {place} {condition.words}", holds, condition.bounds)


def where(words: str, names: Sequence[str], holds: Callable[[Numbers], bool]) -> Condition:
    """Return a condition of a shape that no other function here has.

    Args:
        words: the condition for a reader.
        names: of all numbers that it reads.
        holds: decides, from the numbers.
    """
    return Condition(words, lambda numbers, by_seed: holds(numbers), dict.fromkeys(names, ()))


@dataclass(frozen=True, slots=True)
class Rule:
    """How a verdict follows from measured numbers. What holds neither way is *partly*.

    Args:
        reproduced: when the claim is reproduced.
        refuted: when it is refuted, also if ``reproduced`` holds; whenever it is not reproduced by default.
        words: the rule for a reader; made of the conditions' words by default.
    """

    reproduced: Condition
    refuted: Condition | None = None
    words: str = field(default="")

    def __post_init__(self) -> None:
        if not self.words:
            refuted = "otherwise" if self.refuted is None else f"if {self.refuted.words}"
            object.__setattr__(self, "words", f"Reproduced if {self.reproduced.words}; refuted {refuted}.")

    def verdict(self, numbers: Numbers, by_seed: BySeed | None = None) -> ClaimVerdict:
        """Return the verdict.

        Args:
            numbers: measured numbers by name.
            by_seed: values of single seeds by name, for conditions that ask for them.
        """
        by_seed = by_seed or {}
        if self.refuted is not None and self.refuted.holds(numbers, by_seed):
            return "refuted"
        if self.reproduced.holds(numbers, by_seed):
            return "reproduced"
        return "refuted" if self.refuted is None else "partly"

    @property
    def bounds(self) -> dict[str, tuple[float, ...]]:
        """The numbers that the rule reads, each with the bounds that it is compared with."""
        return _merge(self.reproduced.bounds, {} if self.refuted is None else self.refuted.bounds)


def all_or_none(*conditions: Condition) -> Rule:
    """Return the rule that a claim is reproduced if all conditions hold, and refuted if none does."""
    every = conditions[0]
    for condition in conditions[1:]:
        every = every & condition

    def none_holds(numbers: Numbers, by_seed: BySeed) -> bool:
        return not any(condition.holds(numbers, by_seed) for condition in conditions)

    listed = "; ".join(f"({i}) {condition.words}" for i, condition in enumerate(conditions, 1))
    how = {1: "this holds, refuted if not", 2: "both hold, refuted if neither does"}
    words = f"Reproduced if {how.get(len(conditions), 'all of these hold, refuted if none does')}: {listed}."
    return Rule(every, Condition("none holds", none_holds, every.bounds), words)


def _compare(
    name: str,
    bound: float | str,
    label: str,
    times: float,
    relation: str,
    holds: Callable[[float, float], bool],
) -> Condition:
    factor = "" if times == 1 else f"{times:g} times "
    if isinstance(bound, str):
        words = f"{_label(name, label)} {relation} {factor}{_label(bound)}"
        return Condition(words, lambda n, s: holds(n[name], times * n[bound]), {name: (), bound: ()})
    limit = times * bound
    words = f"{_label(name, label)} {relation} {_figure(limit)}"
    return Condition(words, lambda n, s: holds(n[name], limit), {name: (limit,)})


def _distance(
    name: str,
    tolerance: float,
    target: float,
    label: str,
    relative: bool,
    relation: str,
    holds: Callable[[float], bool],
) -> Condition:
    def of(numbers: Numbers, by_seed: BySeed) -> bool:
        return holds(abs(numbers[name] / target - 1 if relative else numbers[name] - target))

    size = f"{100 * tolerance:g} %" if relative else _figure(tolerance)
    ends = tuple(target + sign * tolerance * (target if relative else 1.0) for sign in (-1, 0, 1))
    return Condition(f"{_label(name, label)} {relation} {size} of {_figure(target)}", of, {name: ends})


def _join(
    word: Literal["and", "or"], first: Condition, second: Condition, holds: Callable[[Numbers, BySeed], bool]
) -> Condition:
    parts = [f"({part.words})" if part.joined_by not in ("", word) else part.words for part in (first, second)]
    return Condition(f" {word} ".join(parts), holds, _merge(first.bounds, second.bounds), word)


def _merge(
    first: Mapping[str, tuple[float, ...]], second: Mapping[str, tuple[float, ...]]
) -> dict[str, tuple[float, ...]]:
    return {name: first.get(name, ()) + second.get(name, ()) for name in {**first, **second}}


def _label(name: str, label: str = "") -> str:
    return label or name.replace("_", " ")


def _figure(value: float) -> str:
    return f"{value:.6g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
