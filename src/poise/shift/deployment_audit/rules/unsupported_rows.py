"""Production has rows that the reference has not.

## What it is
A part of the last chunk has next to no counterpart among the rows of the reference.

## Why it hurts
Nothing is known about the classifier on such rows. An estimate for the chunk would be an extrapolation.

## How it is detected
For more than a tenth of the chunk's rows, a classifier that did not see them says with a probability above 95 % that
they come from production.

## What cures it
Label some of these rows and add them to the reference. Let the classifier abstain on them until then.

## References
- Garg et al., *Leveraging unlabeled data to predict out-of-distribution performance*, ICLR 2022, arXiv:2201.04234
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule

if TYPE_CHECKING:
    from poise.shift.deployment_audit.facts import DeploymentFacts


def find(facts: DeploymentFacts) -> list[Finding]:
    """Find a last chunk outside the support of the reference."""
    from poise.shift.deployment_audit.facts import MOST_UNSUPPORTED

    overlap = facts.last.overlap
    if overlap is None or overlap.unsupported_fraction <= MOST_UNSUPPORTED:
        return []
    fraction = overlap.unsupported_fraction
    return [
        RULE.finding(
            "warning",
            0.9,
            f"{100 * fraction:.0f} % of the last chunk's rows have next to no counterpart in the reference: "
            "its metrics cannot be told.",
            where=tuple(drift.name for drift in facts.drift[:3]),
            evidence=(Evidence("unsupported_fraction", fraction, MOST_UNSUPPORTED),),
        )
    ]


RULE: Rule[DeploymentFacts] = Rule(
    id="unsupported_rows",
    title="Production has rows that the reference has not",
    find=find,
    doc=__doc__,
    family="support",
)
