"""What a cause is: a named mechanism of instability with a rule that finds it in the signals of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from poise.report.finding import Evidence, Finding, Severity
from poise.store import Record


@dataclass(frozen=True, slots=True)
class Cause:
    """A named mechanism of instability.

    Args:
        id: identifier, equal to the name of the module that holds it.
        title: a few words for headings.
        find: the rule; takes the record of one timeline and returns what it found there. It must be pure, and causal
            in time: which cause, where, since when and when detected depend only on what was recorded up to the
            detection, so that ``find(record.until(t))`` reports exactly the findings detected by step ``t``.
        exact: whether the rule recognises a fact (a bug, a NaN) rather than a statistical pattern.
        doc: documentation in Markdown: the docstring of the cause's module.
        leads_to: ids of causes that this one brings about; found later in the same run, they are explained by it.
        remedies: remedies as the command line takes them (``"beta2"``, or with a strength: ``"lr_scale=10"``), the most
            promising first; a finding carries their names.
        benign: whether it does no harm. It then explains, for as long as it lasts, what looks like harm.
    """

    id: str
    title: str
    find: Callable[[Record], list[Finding]]
    exact: bool
    doc: str | None
    leads_to: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()
    benign: bool = False

    def finding(
        self,
        severity: Severity,
        probability: float,
        summary: str,
        *,
        detected: int,
        onset: int | None = None,
        event: int | None = None,
        where: Sequence[str] = (),
        evidence: Sequence[Evidence] = (),
    ) -> Finding:
        """Return a finding of this cause, with its id and remedies filled in."""
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
            remedies=tuple(spec.partition("=")[0] for spec in self.remedies),
        )
