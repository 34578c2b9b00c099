"""How well a tool's answers name the faults of the clinic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from poise.studies.clinic.corpus import Case, cases


@dataclass(frozen=True, slots=True)
class Answer:
    """What a tool says of one run of one script.

    Args:
        case: name of the case.
        causes: ids of causes, the likeliest first; empty if the tool raises no alarm. An alarm of a tool that names no
            cause is any word that is none, for example ``"alarm"``.
    """

    case: str
    causes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """Yes/no outcomes of a tool, one for each run of a kind.

    Args:
        first: for each fault, whether the first cause is right.
        among_three: for each fault, whether one of the first three is.
        silent: for each fault, whether there was no alarm.
        alarmed: for each healthy script, whether there was an alarm.
    """

    first: tuple[bool, ...]
    among_three: tuple[bool, ...]
    silent: tuple[bool, ...]
    alarmed: tuple[bool, ...]

    @property
    def top1(self) -> float:
        """Fraction of the faults whose cause comes first; NaN without faults."""
        return _fraction(self.first)

    @property
    def top3(self) -> float:
        """Fraction of the faults whose cause is among the first three; NaN without faults."""
        return _fraction(self.among_three)

    @property
    def precise(self) -> tuple[bool, ...]:
        """For each run with an alarm, of a fault or of a healthy script, whether the first cause is right."""
        of_faults = [right for right, silent in zip(self.first, self.silent, strict=True) if not silent]
        return (*of_faults, *[False for alarmed in self.alarmed if alarmed])

    @property
    def precision(self) -> float:
        """Fraction of the alarms whose first cause is right; NaN without alarms."""
        return _fraction(self.precise)

    @property
    def false_alarms(self) -> float:
        """Fraction of the healthy scripts with an alarm; NaN without healthy scripts."""
        return _fraction(self.alarmed)


def is_right(case: Case, causes: Sequence[str]) -> bool:
    """Whether one of some causes is among the right ones of a case."""
    return bool(set(causes) & set(case.causes))


def score(answers: Iterable[Answer]) -> Score:
    """Judge a tool's answers.

    Args:
        answers: one for each run. A case may occur several times, once a seed.

    Raises:
        ValueError: if an answer names a case that is not in the clinic.
    """
    known = cases()
    faults: list[Answer] = []
    healthy: list[Answer] = []
    for answer in answers:
        if answer.case not in known:
            raise ValueError(f"answers must name cases of the clinic, got {answer.case!r}")
        (healthy if known[answer.case].is_healthy else faults).append(answer)
    return Score(
        tuple(is_right(known[a.case], a.causes[:1]) for a in faults),
        tuple(is_right(known[a.case], a.causes[:3]) for a in faults),
        tuple(not a.causes for a in faults),
        tuple(bool(a.causes) for a in healthy),
    )


def _fraction(outcomes: Sequence[bool]) -> float:
    return sum(outcomes) / len(outcomes) if outcomes else float("nan")
