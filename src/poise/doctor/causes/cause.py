"""What a cause is: a named mechanism of instability with a rule that finds it in the signals of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from poise.doctor.events import LossEvent
from poise.report.finding import Evidence, Finding, Severity
from poise.rules.rule import Rule
from poise.store import Record


@dataclass(frozen=True, slots=True)
class Cause(Rule[Record]):
    """A named mechanism of instability: a rule over the record of one timeline of a run.

    Its ``find`` is not only pure but causal in time: which cause, where, since when and when detected depend only on
    what was recorded up to the detection, so that ``find(record.until(t))`` reports exactly the findings detected by
    step ``t``. Its remedies are written as the command line takes them (``"beta2"``, ``"lr_scale=10"``).

    Args:
        leads_to: ids of causes that this one brings about; found later in the same run, they are explained by it, and
            so are their consequences. Indirect consequences are not listed.
        benign: whether it does no harm. While it lasts, it explains what otherwise would count as harm.
    """

    leads_to: tuple[str, ...] = ()
    benign: bool = False

    def further(self) -> str:
        """Return what the cause explains away, in Markdown."""
        if not self.leads_to:
            return ""
        direct = ", ".join(f"`{other}`" for other in self.leads_to)
        return f"## What it explains away\n{direct}, and in turn what that explains away."

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
        event: LossEvent | int | None = None,
        severity_with_event: Severity | None = None,
    ) -> Finding:
        """Return a finding of this cause, with its id and remedies filled in; see :meth:`Rule.finding`.

        Args:
            severity: ``"info"``, ``"warning"`` or ``"error"``.
            probability: confidence of the rule, in [0, 1].
            summary: one plain sentence, with its full stop.
            where: names of the layers, parameters or optimizers concerned, worst first.
            evidence: the numbers.
            remedies: those of the cause's remedies that fit; all of them by default.
            onset: step at which the cause began; ``None`` where it has no time.
            detected: first step at which the record sufficed to find it.
            event: what happened to the loss: its phrase ends the sentence. A step number is only recorded.
            severity_with_event: severity if there is an event.
        """
        if event is not None and severity_with_event is not None:
            severity = severity_with_event
        if isinstance(event, LossEvent):
            summary = f"{summary.removesuffix('.')}; {event.phrase}."
        return Rule.finding(
            self,
            severity,
            probability,
            summary,
            where=where,
            evidence=evidence,
            remedies=remedies,
            onset=onset,
            detected=detected,
            event=event.step if isinstance(event, LossEvent) else event,
        )
