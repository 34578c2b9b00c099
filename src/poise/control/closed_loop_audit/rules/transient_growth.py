"""Perturbations grow before they decay.

## What it is
The loop returns to its equilibrium in the end, but some perturbations first grow to many times their size: the
Jacobian of the closed loop is not normal.

## Why it hurts
Nonlinear terms and limits of the input take over on the way, so the attracted region is smaller than the eigenvalues
suggest.

## How it is detected
The norm of the powers of the closed loop's Jacobian, in half widths of the box, exceeds 10.

## What cures it
Gains that damp the coupled directions together; a weight in Q on what peaks.

```python
Q = torch.diag(torch.tensor([1.0, 1.0, 50.0]))  # the third coordinate peaked
```

## References
- Trefethen and Embree, *Spectra and Pseudospectra*, Princeton University Press 2005, chapter 14
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.control.closed_loop_audit.facts import ClosedLoopFacts


_LARGE = 10.0


def find(facts: ClosedLoopFacts) -> list[Finding]:
    """Find a stable loop in which perturbations grow more than tenfold."""
    if facts.local is None or facts.local.verdict == "unstable" or facts.local.non_normality is None:
        return []
    growth = facts.local.non_normality.transient_growth
    if growth is None or growth <= _LARGE:
        return []
    text = f"Some perturbations grow to {number(growth, 3)} times their size before they decay."
    return [
        RULE.finding("warning", 0.9, text, where=("goal",), evidence=(Evidence("transient growth", growth, _LARGE),))
    ]


RULE: Rule[ClosedLoopFacts] = Rule(
    id="transient_growth",
    title="Perturbations grow before they decay",
    find=find,
    doc=__doc__,
    family="goal",
)
