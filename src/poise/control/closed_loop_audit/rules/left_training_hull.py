"""Runs leave the hull of the training states.

## What it is
Runs from the box pass through states that are no mixture of training states.

## Why it hurts
There, a learned model or controller extrapolates. What it does is set by its architecture, not by data.

## How it is detected
More than a tenth of the runs that were looked at start outside the convex hull of the training states, or leave it.

## What cures it
Training states from the whole box and from the runs themselves, or a smaller box.

```python
X = np.concatenate([X, paths.reshape(-1, X.shape[1])])  # then train again
```

## References
- Richards et al., *Learning control-oriented dynamical structure from data*, ICML 2023, arXiv:2302.02529
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.control.closed_loop_audit.facts import ClosedLoopFacts


_MANY = 0.1


def find(facts: ClosedLoopFacts) -> list[Finding]:
    """Find runs outside the hull."""
    hull = facts.hull
    if hull is None or hull.outside + hull.left <= _MANY:
        return []
    text = f"Of {hull.runs} runs, {100 * hull.outside:.3g} % start outside the hull of the training states"
    if hull.left:
        text += f" and {100 * hull.left:.3g} % leave it, half of them by time {number(hull.first_exit, 3)}"
    text += f"; {100 * hull.left_failing:.3g} % of these runs fail."
    evidence = (Evidence("outside the hull", hull.outside + hull.left, _MANY),)
    return [
        RULE.finding(
            "warning" if hull.left_failing > 0 else "info", 0.9, text, where=("training states",), evidence=evidence
        )
    ]


RULE: Rule[ClosedLoopFacts] = Rule(
    id="left_training_hull",
    title="Runs leave the hull of the training states",
    find=find,
    doc=__doc__,
    family="model",
)
