"""Scores are not probabilities.

## What it is
On the reference, the scores differ from the fraction of positive labels among rows with such scores.

## Why it hurts
Whoever reads the scores as probabilities, for costs or priorities, is misled. The estimates of this audit are not: they
calibrate the scores first.

## How it is detected
The expected calibration error over ten bins of equally many rows of the reference exceeds 0.05.

## What cures it
Calibrate the classifier on held-out rows before it is deployed.

```python
CalibratedClassifierCV(model, method="isotonic").fit(X, y)
```

## References
- Guo et al., *On calibration of modern neural networks*, ICML 2017, arXiv:1706.04599
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.shift.deployment_audit.facts import DeploymentFacts

_LARGE = 0.05


def find(facts: DeploymentFacts) -> list[Finding]:
    """Find scores that are far from probabilities."""
    if facts.calibration_error <= _LARGE:
        return []
    return [
        RULE.finding(
            "info",
            0.9,
            f"On the reference the scores are off by {number(facts.calibration_error, 2)} on average as probabilities.",
            evidence=(Evidence("calibration_error", facts.calibration_error, _LARGE),),
        )
    ]


RULE: Rule[DeploymentFacts] = Rule(
    id="miscalibrated_scores",
    title="Scores are not probabilities",
    find=find,
    doc=__doc__,
    family="performance",
)
