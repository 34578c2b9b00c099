"""The classifier has become worse.

## What it is
In a chunk of production, an estimated metric is worse than its threshold, with its whole 95 % interval.

## Why it hurts
Decisions are worse than when the classifier was accepted, and nobody sees it until labels arrive.

## How it is detected
The interval of the metric, estimated without labels, lies beyond the threshold (by default three standard deviations of
the metric over chunks of the reference). It is an error in the last chunk, and a warning if only earlier ones dropped.
Chunks that the reference does not cover are left out.

## What cures it
Label a sample of the last chunk to confirm it. Retrain on recent rows, or on the reference weighted to look like them;
until then move the decision threshold or hand the affected rows to people.

## References
- Bialek et al., *We don't need no labels: Estimating post-deployment model performance under covariate shift without
  ground truth*, 2024, arXiv:2401.08348
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.shift.deployment_audit.facts import DeploymentFacts


def find(facts: DeploymentFacts) -> list[Finding]:
    """Find metrics that dropped, the last chunk first."""
    dropped = [
        (chunk, metric)
        for chunk in reversed(facts.chunks)
        for metric in facts.metrics
        if facts.state(chunk, metric) == "dropped"
    ]
    if not dropped:
        return []
    now = [(chunk, metric) for chunk, metric in dropped if chunk.chunk == facts.last.chunk]
    chunk, metric = (now or dropped)[0]
    estimate = chunk.of(metric.name)
    threshold = estimate.lower_threshold if metric.higher_is_better else estimate.upper_threshold
    when = "in the last chunk" if now else f"in chunk {chunk.chunk}, but not in the last one"
    return [
        RULE.finding(
            "error" if now else "warning",
            0.95,
            f"{metric.name} is {number(estimate.value, 3)} ({number(estimate.low, 3)} to {number(estimate.high, 3)}) "
            f"{when}, worse than {number(threshold, 3)}; it was {number(metric.reference, 3)} on the reference.",
            where=tuple(dict.fromkeys(m.name for _, m in (now or dropped))),
            evidence=(Evidence(metric.name, estimate.value, threshold, metric.reference),),
        )
    ]


RULE: Rule[DeploymentFacts] = Rule(
    id="performance_drop",
    title="The classifier has become worse",
    find=find,
    doc=__doc__,
    family="performance",
)
