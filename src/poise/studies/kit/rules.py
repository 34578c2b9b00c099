"""Verdict rules: conditions on measured numbers, each of which says in words what it asks for.

A condition is made by :func:`at_least`, :func:`at_most`, :func:`above`, :func:`below`, :func:`equal_to`,
:func:`within`, :func:`beyond`, :func:`between`, :func:`holds_in` or :func:`where`; ``&`` and ``|`` join conditions. A
:class:`Rule` has one condition for *reproduced* and one for *refuted*.

A number that is judged over seeds is not a point but an interval. A condition then holds across the interval
(``True``), nowhere in it (``False``), or in a part of it (``None``), and ``&`` and ``|`` follow Kleene's logic of
three values.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from poise.studies.kit.seed_interval import Interval, fraction_interval, seed_interval

ClaimVerdict = Literal["reproduced", "partly", "refuted", "not tested"]

Numbers = Mapping[str, float | Interval]
BySeed = Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Condition:
    """What may hold of measured numbers.

    Args:
        words: the condition for a reader, such as ``"error ≤ 1e-8"``.
        decide: from the numbers (a value, or an interval from low to high) and from the values by seed: whether
            it holds everywhere, nowhere, or (``None``) only for a part of the intervals.
        bounds: the numbers it reads, each with the bounds that it is compared with.
        joined_by: the word that joins the parts of ``words``; empty where there is one part.
        notes: what conditions of fractions of seeds say of the values by seed: how many, and the interval.
    """

    words: str
    decide: Callable[[Numbers, BySeed], bool | None]
    bounds: Mapping[str, tuple[float, ...]]
    joined_by: Literal["", "and", "or"] = ""
    notes: tuple[Callable[[BySeed], str], ...] = ()

    def holds(self, numbers: Numbers, by_seed: BySeed) -> bool:
        """Whether it holds across all intervals."""
        return self.decide(numbers, by_seed) is True

    def __and__(self, other: Condition) -> Condition:
        return _join("and", self, other, lambda n, s: _all(part.decide(n, s) for part in (self, other)))

    def __or__(self, other: Condition) -> Condition:
        return _join("or", self, other, lambda n, s: _any(part.decide(n, s) for part in (self, other)))


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

    def decide(numbers: Numbers, by_seed: BySeed) -> bool | None:
        return _everywhere(lambda value: low <= value <= high, _points(numbers[name], low))

    return Condition(words, decide, {name: (low, high)})


def holds_in(condition: Condition, fraction: float, unit: str = "seeds") -> Condition:
    """Return the condition that another one holds in a fraction of all seeds, of which those run are a sample.

    It is judged on the exact 95 % interval of the fraction, so few seeds decide nothing: with 5 seeds or fewer not even
    a fraction of one half can be shown; one of 0.9 needs 36 seeds in all of which the condition holds.

    Args:
        condition: of one seed; it reads ``Measured.by_seed`` as if these were the numbers.
        fraction: of seeds that is needed, above 0 and below 1: no number of seeds shows that something holds in all.
        unit: what the outcomes are of, if not of seeds: runs or problems, each with random numbers of its own.

    Raises:
        ValueError: if ``fraction`` is outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie in (0, 1), got {fraction}; no number of seeds shows more")

    def outcomes(by_seed: BySeed) -> list[bool]:
        names = list(condition.bounds)
        seeds = [dict(zip(names, row, strict=True)) for row in zip(*(by_seed[name] for name in names), strict=True)]
        return [condition.holds(seed, {}) for seed in seeds]

    def decide(numbers: Numbers, by_seed: BySeed) -> bool | None:
        low, high = fraction_interval(outcomes(by_seed))
        return True if low >= fraction else False if high < fraction else None

    def note(by_seed: BySeed) -> str:
        return f"{condition.words} in {_fraction_words(outcomes(by_seed), fraction, unit)}"

    words = f"in at least {100 * fraction:.3g} % of {unit} (exact 95 % interval) {condition.words}"
    return Condition(words, decide, condition.bounds, notes=(note,))


def where(words: str, names: Sequence[str], holds: Callable[[Mapping[str, float]], bool]) -> Condition:
    """Return a condition of a shape that no other function here has.

    Args:
        words: the condition for a reader.
        names: of all numbers that it reads.
        holds: decides, from the numbers. Of intervals it is asked at all their ends, so it must be monotone in each
            number that is judged over seeds.
    """

    def decide(numbers: Numbers, by_seed: BySeed) -> bool | None:
        corners = itertools.product(*(_ends(numbers[name]) for name in names))
        return _everywhere(lambda corner: holds(dict(zip(names, corner, strict=True))), corners)

    return Condition(words, decide, dict.fromkeys(names, ()))


@dataclass(frozen=True, slots=True)
class Rule:
    """How a verdict follows from measured numbers. What holds neither way is *partly*.

    Args:
        reproduced: when the claim is reproduced.
        refuted: when it is refuted, also if ``reproduced`` holds; whenever it is not reproduced by default.
        words: the rule for a reader; made of the conditions' words by default.
        over_seeds: names of numbers that are judged on their 95 % interval over seeds, that of the mean of their values
            by seed where no other is given: *reproduced* and *refuted* then need their condition to hold across it.
        unit: what the interval is over, if not seeds: runs or problems, each with random numbers of its own.
    """

    reproduced: Condition
    refuted: Condition | None = None
    words: str = field(default="")
    over_seeds: tuple[str, ...] = ()
    unit: str = "seeds"

    def __post_init__(self) -> None:
        unknown = sorted(set(self.over_seeds) - set(self.bounds))
        if unknown:
            raise ValueError(f"over_seeds must name numbers that the rule reads, got {unknown}")
        words = self.words
        if not words:
            refuted = "otherwise" if self.refuted is None else f"if {self.refuted.words}"
            words = f"Reproduced if {self.reproduced.words}; refuted {refuted}."
        if self.over_seeds:
            names = ", ".join(_label(name) for name in self.over_seeds)
            words += f" A verdict must hold across 95 % intervals over {self.unit} of: {names}; partly if it does not."
        object.__setattr__(self, "words", words)

    @property
    def judges_over_seeds(self) -> bool:
        """Whether an interval over seeds, or over another unit, decides."""
        conditions = [self.reproduced, *([] if self.refuted is None else [self.refuted])]
        return bool(self.over_seeds) or any(condition.notes for condition in conditions)

    def verdict(
        self,
        numbers: Mapping[str, float],
        by_seed: BySeed | None = None,
        intervals: Mapping[str, Interval] | None = None,
    ) -> ClaimVerdict:
        """Return the verdict.

        Args:
            numbers: measured numbers by name.
            by_seed: values of single seeds by name, for the numbers and conditions that are judged over seeds.
            intervals: intervals by name, for the numbers judged over seeds that are no means of values by seed.
        """
        by_seed = by_seed or {}
        return self._verdict({**numbers, **self.intervals(by_seed, intervals)}, by_seed)

    def intervals(self, by_seed: BySeed, given: Mapping[str, Interval] | None = None) -> dict[str, Interval]:
        """Return the intervals of the numbers that are judged over seeds.

        Args:
            by_seed: values of single seeds by name.
            given: intervals by name that do not come from these values.

        Raises:
            ValueError: if one of them has neither an interval nor values.
        """
        given = given or {}
        missing = [name for name in self.over_seeds if name not in given and not len(by_seed.get(name, ()))]
        if missing:
            raise ValueError(f"by_seed must hold the values of {list(self.over_seeds)}, those of {missing} are missing")
        return {name: given[name] if name in given else seed_interval(by_seed[name]) for name in self.over_seeds}

    def note(self, by_seed: BySeed, given: Mapping[str, Interval] | None = None) -> str:
        """Return in words the intervals on which the claim is judged; empty if none is judged over seeds.

        Args:
            by_seed: as for :meth:`intervals`.
            given: as for :meth:`intervals`.
        """
        parts = []
        for name, (low, high) in self.intervals(by_seed, given).items():
            if given and name in given:
                parts.append(f"{_label(name)} {low:.3g} to {high:.3g} (95 % interval, bootstrap over {self.unit})")
                continue
            values = by_seed[name]
            if all(isinstance(value, bool) for value in values):
                wanted = max(self.bounds[name], default=0.0)
                parts.append(f"{_label(name)} in {_fraction_words(values, wanted, self.unit)}")
            else:
                count = f"{len(values)} {self.unit if len(values) > 1 else self.unit.removesuffix('s')}"
                parts.append(f"{_label(name)} {low:.3g} to {high:.3g} (95 % interval of the mean of {count})")
        conditions = [self.reproduced, *([] if self.refuted is None else [self.refuted])]
        parts += dict.fromkeys(note(by_seed) for condition in conditions for note in condition.notes)
        return "; ".join(parts)

    def _verdict(self, numbers: Numbers, by_seed: BySeed) -> ClaimVerdict:
        if self.refuted is not None and self.refuted.holds(numbers, by_seed):
            return "refuted"
        reproduced = self.reproduced.decide(numbers, by_seed)
        if reproduced:
            return "reproduced"
        return "refuted" if self.refuted is None and reproduced is False else "partly"

    @property
    def bounds(self) -> dict[str, tuple[float, ...]]:
        """The numbers that the rule reads, each with the bounds that it is compared with."""
        return _merge(self.reproduced.bounds, {} if self.refuted is None else self.refuted.bounds)


def all_or_none(*conditions: Condition, over_seeds: Sequence[str] = (), unit: str = "seeds") -> Rule:
    """Return the rule that a claim is reproduced if all conditions hold, and refuted if none does.

    Args:
        *conditions: the conditions.
        over_seeds: names of numbers that are judged over seeds; see :class:`Rule`.
        unit: what their intervals are over; see :class:`Rule`.
    """
    every = conditions[0]
    for condition in conditions[1:]:
        every = every & condition

    def none_holds(numbers: Numbers, by_seed: BySeed) -> bool | None:
        return _not(_any(condition.decide(numbers, by_seed) for condition in conditions))

    listed = "; ".join(f"({i}) {condition.words}" for i, condition in enumerate(conditions, 1))
    how = {1: "this holds, refuted if not", 2: "both hold, refuted if neither does"}
    words = f"Reproduced if {how.get(len(conditions), 'all of these hold, refuted if none does')}: {listed}."
    return Rule(every, Condition("none holds", none_holds, every.bounds), words, tuple(over_seeds), unit)


def _compare(
    name: str,
    bound: float | str,
    label: str,
    times: float,
    relation: str,
    holds: Callable[[float, float], bool],
) -> Condition:
    def decide(numbers: Numbers, by_seed: BySeed) -> bool | None:
        value, limit = _ends(numbers[name]), _ends(numbers[bound] if isinstance(bound, str) else bound)
        limit = times * limit[0], times * limit[1]
        pairs = list(itertools.product(value, limit))
        common = max(value[0], limit[0])
        if common <= min(value[1], limit[1]):  # a value that both may have
            pairs.append((common, common))
        return _everywhere(lambda pair: holds(*pair), pairs)

    factor = "" if times == 1 else f"{times:g} times "
    if isinstance(bound, str):
        words = f"{_label(name, label)} {relation} {factor}{_label(bound)}"
        return Condition(words, decide, {name: (), bound: ()})
    words = f"{_label(name, label)} {relation} {_figure(times * bound)}"
    return Condition(words, decide, {name: (times * bound,)})


def _distance(
    name: str,
    tolerance: float,
    target: float,
    label: str,
    relative: bool,
    relation: str,
    holds: Callable[[float], bool],
) -> Condition:
    def decide(numbers: Numbers, by_seed: BySeed) -> bool | None:
        points = _points(numbers[name], target)
        return _everywhere(lambda value: holds(abs(value / target - 1 if relative else value - target)), points)

    size = f"{100 * tolerance:g} %" if relative else _figure(tolerance)
    ends = tuple(target + sign * tolerance * (target if relative else 1.0) for sign in (-1, 0, 1))
    return Condition(f"{_label(name, label)} {relation} {size} of {_figure(target)}", decide, {name: ends})


def _fraction_words(outcomes: Sequence[float], wanted: float, unit: str) -> str:
    """Say how many units had a yes, in which interval the fraction lies, and whether so few could show ``wanted``."""
    low, high = fraction_interval(outcomes)
    words = f"{sum(map(bool, outcomes))} of {len(outcomes)} {unit} (exact 95 % interval {low:.2f} to {high:.2f}"
    few = fraction_interval([True] * len(outcomes))[0] < wanted
    return f"{words}; so few {unit} cannot show {100 * wanted:.3g} %)" if few else f"{words})"


def _ends(value: float | Interval) -> Interval:
    """Return the ends of an interval; a value is its own."""
    return value if isinstance(value, tuple) else (value, value)


def _points(value: float | Interval, inner: float) -> tuple[float, float, float]:
    """Return the ends of an interval and its point that is nearest to ``inner``."""
    low, high = _ends(value)
    return low, high, min(max(inner, low), high)


def _everywhere(holds: Callable[[Any], bool], points: Iterable[Any]) -> bool | None:
    held = [holds(point) for point in points]
    return True if all(held) else None if any(held) else False


def _all(parts: Iterable[bool | None]) -> bool | None:
    known = list(parts)
    return False if False in known else None if None in known else True


def _any(parts: Iterable[bool | None]) -> bool | None:
    return _not(_all(_not(part) for part in parts))


def _not(value: bool | None) -> bool | None:
    return None if value is None else not value


def _join(
    word: Literal["and", "or"], first: Condition, second: Condition, decide: Callable[[Numbers, BySeed], bool | None]
) -> Condition:
    parts = [f"({part.words})" if part.joined_by not in ("", word) else part.words for part in (first, second)]
    return Condition(
        f" {word} ".join(parts), decide, _merge(first.bounds, second.bounds), word, first.notes + second.notes
    )


def _merge(
    first: Mapping[str, tuple[float, ...]], second: Mapping[str, tuple[float, ...]]
) -> dict[str, tuple[float, ...]]:
    return {name: first.get(name, ()) + second.get(name, ()) for name in {**first, **second}}


def _label(name: str, label: str = "") -> str:
    return label or name.replace("_", " ")


def _figure(value: float) -> str:
    return f"{value:.6g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
