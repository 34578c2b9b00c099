"""Labels disagree with what the scores predicted.

## What it is
In a chunk that has labels, the realised metric is far outside the interval that was estimated without them.

## Why it hurts
The relation of labels and inputs is not that of the reference any more. Estimates without labels rest on it, so the
chunks after it cannot be trusted either.

## How it is detected
The realised metric is more than four standard deviations from the estimate, in a chunk that the reference covers.

## What cures it
Retrain on rows from after the change. Use labelled rows from after it as the new reference.

## References
- Gama et al., *A survey on concept drift adaptation*, ACM Computing Surveys 46, 2014
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.shift.deployment_audit.facts import DeploymentFacts

_DEVIATIONS, _Z = 4.0, 1.96


def find(facts: DeploymentFacts) -> list[Finding]:
    """Find the chunk whose labels are furthest from its estimate."""
    from poise.shift.deployment_audit.facts import is_supported

    found = []
    for chunk in facts.chunks:
        for estimate in chunk.metrics:
            if estimate.realised is None or not is_supported(chunk) or not estimate.high > estimate.low:
                continue
            deviation = (estimate.high - estimate.low) / (2 * _Z)
            found.append((abs(estimate.realised - estimate.value) / deviation, chunk, estimate))
    worst = max(found, key=lambda item: item[0], default=None)
    if worst is None or worst[0] <= _DEVIATIONS:
        return []
    distance, chunk, estimate = worst
    assert estimate.realised is not None
    return [
        RULE.finding(
            "warning",
            0.9,
            f"The labels of chunk {chunk.chunk} give {estimate.metric} {number(estimate.realised, 3)}, "
            f"{number(distance, 2)} standard deviations from the estimate {number(estimate.value, 3)}: the relation of "
            "labels and inputs has changed.",
            where=(estimate.metric,),
            evidence=(Evidence(estimate.metric, estimate.realised, None, estimate.value),),
        )
    ]


RULE: Rule[DeploymentFacts] = Rule(
    id="concept_shift",
    title="Labels disagree with what the scores predicted",
    find=find,
    doc=__doc__,
    family="performance",
)
