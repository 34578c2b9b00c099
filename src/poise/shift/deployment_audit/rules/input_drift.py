"""Inputs moved that the classifier depends on.

## What it is
The distribution of an input in the last chunk differs from that in the reference, and the scores depend on this input.

## Why it hurts
By itself it need not: the report's estimates say whether the metrics suffer. It says where to look first if they do.

## How it is detected
The effect size is at least 0.1, and times the importance at least 0.02. The effect size is a distance of distributions
(of numbers in standard deviations), not a p-value, which is tiny for any shift if there are enough rows. The importance
is how much worse a model of the scores becomes when the input is permuted, as a fraction of all inputs.

## What cures it
Look for a change in how the input is made or recorded. If the change is real, weigh or retrain.

## References
- Breiman, *Random forests*, Machine Learning 45, 2001 (permutation importance)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.listing import listing
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.shift.deployment_audit.facts import DeploymentFacts


def find(facts: DeploymentFacts) -> list[Finding]:
    """Find inputs whose drift can matter, the most relevant first."""
    from poise.shift.deployment_audit.facts import DRIFT_THAT_MATTERS

    moved = [drift for drift in facts.drift if drift.matters]
    if not moved:
        return []
    names = tuple(drift.name for drift in moved)
    first = moved[0]
    return [
        RULE.finding(
            "info",
            0.9,
            f"{listing(names)} moved in the last chunk: {first.name} by {number(first.effect, 2)}, with "
            f"{100 * first.importance:.0f} % of the importance.",
            where=names,
            evidence=tuple(Evidence(f"drift[{d.name}]", d.relevance, DRIFT_THAT_MATTERS) for d in moved[:5]),
        )
    ]


RULE: Rule[DeploymentFacts] = Rule(
    id="input_drift",
    title="Inputs moved that the classifier depends on",
    find=find,
    doc=__doc__,
    family="inputs",
)
