"""What a rule is: one documented way to find one thing in measured facts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from poise.report.finding import SEVERITIES, Evidence, Finding, Severity

Facts = TypeVar("Facts")

SECTIONS = ("What it is", "Why it hurts", "How it is detected", "What cures it", "References")
"""Headings of the documentation of a rule, in this order."""


@dataclass(frozen=True, slots=True)
class Rule(Generic[Facts]):
    """One documented way to find one thing in measured facts.

    Args:
        id: identifier, equal to the name of the module that holds it. Rules over different facts that find the same
            thing share it: dead units in a run, and dead units before the first step.
        title: a few words for headings, at most 50 characters.
        find: takes the facts and returns what it found in them. It must be pure.
        doc: documentation in Markdown, with the sections of :data:`SECTIONS`: the docstring of the rule's module.
        exact: whether the rule recognises a fact (a bug, a NaN) rather than a statistical pattern.
        remedies: names of documented remedies, the most promising first, each alone or with a strength
            (``"lr_scale=10"``). A finding carries names.
        family: a few plain words for the group in which listings show it, such as ``"learning rate"``.
    """

    id: str
    title: str
    find: Callable[[Facts], list[Finding]]
    doc: str | None
    exact: bool = False
    remedies: tuple[str, ...] = ()
    family: str = ""

    @property
    def remedy_names(self) -> tuple[str, ...]:
        """The remedies without their strengths, each once."""
        return tuple(dict.fromkeys(spec.partition("=")[0] for spec in self.remedies))

    def further(self) -> str:
        """Return Markdown that :func:`explain` puts below the documentation; nothing here."""
        return ""

    def finding(
        self,
        severity: Severity,
        probability: float,
        summary: str,
        *,
        where: Sequence[str] = (),
        evidence: Sequence[Evidence] = (),
        remedies: Sequence[str] | None = None,
        onset: int | None = None,
        detected: int | None = None,
        event: int | None = None,
    ) -> Finding:
        """Return a finding of this rule, with its id and remedies filled in.

        Args:
            severity: ``"info"``, ``"warning"`` or ``"error"``.
            probability: confidence of the rule, in [0, 1].
            summary: one plain sentence.
            where: names of the parts concerned, worst first.
            evidence: the numbers.
            remedies: those of the rule's remedies that fit these facts, with a strength of their own where the facts
                tell it; all of them, as the rule lists them, by default.
            onset: step at which it began; ``None`` where it has no time.
            detected: first step at which the facts sufficed to find it.
            event: step of what followed.

        Raises:
            ValueError: if a remedy is not one of the rule's.
        """
        specs = tuple(self.remedies if remedies is None else remedies)
        if not {spec.partition("=")[0] for spec in specs} <= set(self.remedy_names):
            raise ValueError(f"remedies of {self.id} must be among {self.remedy_names}, got {specs}")
        return Finding(
            cause=self.id,
            severity=severity,
            probability=probability,
            summary=summary,
            where=tuple(where),
            onset_step=onset,
            detected_step=detected,
            event_step=event,
            evidence=tuple(evidence),
            remedies=specs,
        )


def findings_of(rules: Iterable[Rule[Facts]], facts: Facts) -> list[Finding]:
    """Return what rules find in facts, the worst first.

    Args:
        rules: the rules of an audit; equally severe findings keep their order.
        facts: what the audit measured.
    """
    found = [finding for rule in rules for finding in rule.find(facts)]
    return sorted(found, key=lambda finding: (-SEVERITIES.index(finding.severity), -finding.probability))
