"""From the record of a run to its findings: run every cause on every timeline, name roots, rank.

Attribution. A finding explains another of the same timeline away if its cause leads to the other's cause (directly or
through others), it began no later, it is more than *info*, and its probability is at least 0.5, or at least 0.8
where the other is a fact. A fact is explained only by what was known by its own detection: later evidence
may be its consequence. An explained finding is never dropped. It keeps its identity (cause, where,
onset, detection), is demoted to *info*, says what explains it, and comes after all others; the root inherits its
severity and event, so that the worst severity of a run does not depend on attribution. Because a root may be found
after its consequences, a live run may first report a consequence as an error and later demote it in favour of
the root; which findings there are, and since when, depends only on what was recorded up to their detection.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from poise.doctor.causes import CAUSES, Cause
from poise.doctor.optimizer_names import optimizer_names
from poise.report.finding import SEVERITIES, Finding, Severity
from poise.store import Record
from poise.tools.nearest_name import did_you_mean

UNDETERMINED = "undetermined"
_SURE = 0.9
FACT = 0.95  # probability from which on a finding of an exact cause counts as a fact


def diagnose(record: Record, select: Iterable[str] = (), ignore: Iterable[str] = ()) -> list[Finding]:
    """Find the causes of instability in a run, roots first.

    Args:
        record: what was recorded; ``record.until(t)`` yields the same findings as far as detected by step ``t``.
        select: ids of the causes to look for; all if empty. Hyphens and underscores are equal.
        ignore: ids of causes not to look for.

    Raises:
        ValueError: if an id is unknown; the nearest ones are offered.
    """
    causes = choose_causes(select, ignore)
    timelines, names = record.timelines, optimizer_names(record)
    seen: set[tuple] = set()
    findings: list[Finding] = []
    for prefix in timelines:
        view = record.timeline(prefix)
        here = [finding for cause in causes for finding in cause.find(view) if _is_new(finding, seen)]
        if len(timelines) > 1:
            here = [_for_competitors(finding) for finding in here]
        name = names[prefix] if len(timelines) > 1 else ""
        findings += [_labelled(finding, name) for finding in attribute(here)]
    named = any(finding.severity != "info" and finding.cause != UNDETERMINED for finding in findings)
    if named or len(timelines) > 1:  # where several compete, a loss may rise in health
        findings = [f for f in findings if f.cause != UNDETERMINED or (not named and f.severity != "info")]
    return sorted(findings, key=_rank)


def choose_causes(select: Iterable[str] = (), ignore: Iterable[str] = ()) -> list[Cause]:
    """Return the selected causes (all if none is selected) without the ignored ones.

    Raises:
        ValueError: if an id is unknown; the nearest ones are offered.
    """
    selected = [find_cause(name) for name in select] or list(CAUSES.values())
    ignored = {find_cause(name).id for name in ignore}
    return [cause for cause in selected if cause.id not in ignored]


def find_cause(name: str) -> Cause:
    """Return the cause of this id; hyphens and underscores are equal.

    Raises:
        ValueError: if there is none; the nearest ids are offered.
    """
    key = name.strip().lower().replace("-", "_")
    if key in CAUSES:
        return CAUSES[key]
    raise ValueError(f"cause {name!r} is unknown: {did_you_mean(key, CAUSES)}")


def attribute(findings: Sequence[Finding]) -> list[Finding]:
    """Demote findings that another one explains, and let roots inherit what they explain; see the module."""
    out = list(findings)
    for i, finding in enumerate(findings):
        roots = [j for j, other in enumerate(findings) if j != i and _explains(other, finding)]
        if not roots:
            continue
        # The earliest explanation; itself explained or not, the chain ends at a root.
        first = min(roots, key=lambda j: (_began(findings[j]), -findings[j].probability))
        out[i] = replace(out[i], severity="info", summary=f"{finding.summary} Explained by {findings[first].cause}.")
        for j in roots:
            if CAUSES[findings[j].cause].benign:
                continue  # what it explains did no harm
            if not any(k != j and _explains(other, findings[j]) for k, other in enumerate(findings)):
                out[j] = _inherit(out[j], finding)
    return out


def explained(finding: Finding) -> bool:
    """Return whether attribution has explained a finding away."""
    return "Explained by " in finding.summary


def consequences(cause_id: str) -> set[str]:
    """Return the ids of all causes that a cause leads to, directly or through others."""
    reached: set[str] = set()
    ahead = list(CAUSES[cause_id].leads_to)
    while ahead:
        name = ahead.pop()
        if name not in reached:
            reached.add(name)
            ahead += CAUSES[name].leads_to
    return reached


def _explains(root: Finding, other: Finding) -> bool:
    fact = CAUSES[other.cause].exact and other.probability >= FACT
    is_probable = root.probability >= (0.8 if fact else 0.5)
    if fact and not CAUSES[root.cause].exact and (root.detected_step or 0) > (other.detected_step or 0):
        return False
    if CAUSES[root.cause].benign:  # what comes after its end has another reason
        lasts = root.detected_step is not None and _began(other) <= root.detected_step
    else:
        lasts = root.severity != "info"
    return is_probable and lasts and _began(root) <= _began(other) and other.cause in consequences(root.cause)


def _began(finding: Finding) -> int:
    # What has no onset is a property of the script: it has been there from before the first step.
    return -1 if finding.onset_step is None else finding.onset_step


def _inherit(root: Finding, other: Finding) -> Finding:
    severity: Severity = max(root.severity, other.severity, key=SEVERITIES.index)
    events = [step for step in (root.event_step, other.event_step) if step is not None]
    return replace(root, severity=severity, event_step=min(events, default=None))


def _is_new(finding: Finding, seen: set[tuple]) -> bool:
    # Events that belong to no optimizer are seen from every timeline.
    key = (finding.cause, finding.where, finding.onset_step, finding.detected_step)
    new = key not in seen
    seen.add(key)
    return new


def _for_competitors(finding: Finding) -> Finding:
    """Demote what is not a fact where several optimizers train: if they compete, their losses rise in healthy runs."""
    statistical = not CAUSES[finding.cause].exact
    return replace(finding, severity="info") if statistical and finding.probability < _SURE else finding


def _labelled(finding: Finding, optimizer: str) -> Finding:
    return finding if not optimizer or finding.where else replace(finding, where=(optimizer,))


def _rank(finding: Finding) -> tuple:
    return (
        explained(finding),
        -SEVERITIES.index(finding.severity),
        not CAUSES[finding.cause].exact,
        -finding.probability,
        _began(finding),
    )
