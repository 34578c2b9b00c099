"""The estimate rests on few rows of the reference.

## What it is
Weighted to look like the last chunk, the reference is worth only a few rows.

## Why it hurts
A handful of rows decides the estimate; other rows of the same kind would give another one.

## How it is detected
The effective sample size of the weights, the squared sum over the sum of squares, is below 100.

## What cures it
A larger reference, or labels for rows like those of the chunk. Larger chunks do not help.

## References
- Kish, *Survey Sampling*, 1965
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.shift.deployment_audit.facts import DeploymentFacts


def find(facts: DeploymentFacts) -> list[Finding]:
    """Find a last chunk for which few rows of the reference are left."""
    from poise.shift.deployment_audit.facts import LEAST_EFFECTIVE_ROWS

    overlap = facts.last.overlap
    if overlap is None or overlap.effective_sample_size >= LEAST_EFFECTIVE_ROWS:
        return []
    size = overlap.effective_sample_size
    return [
        RULE.finding(
            "warning",
            0.9,
            f"The reference has {overlap.rows:,} rows; weighted to look like the last chunk, they count as "
            f"{number(size, 3)}.",
            evidence=(Evidence("effective_sample_size", size, LEAST_EFFECTIVE_ROWS),),
        )
    ]


RULE: Rule[DeploymentFacts] = Rule(
    id="low_effective_sample",
    title="The estimate rests on few rows",
    find=find,
    doc=__doc__,
    family="support",
)
