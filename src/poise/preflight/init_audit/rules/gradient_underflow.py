"""Gradients are too small for the number format.

## What it is
From some depth on (counted from the input), the entries of the gradient lie below the smallest number that float16, or
another format, can hold.

## Why it hurts
What is below the smallest number rounds to zero: trained in that format without loss scaling, the layers there do not
learn.

## How it is detected
The root mean square of the gradient's entries at each depth is compared with the smallest number of each format. It is
an error where that is a format larger than float16; it is *info* if the model is not in float16 now.

## What cures it
Scale the loss before the backward pass, or train in bfloat16, whose range is that of float32.

```python
loss.backward()  # bad in float16 where gradients are below 6e-8
scaler.scale(loss).backward()  # good
```

## References
- Micikevicius et al., *Mixed precision training*, ICLR 2018, arXiv:1710.03740
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Finding, Severity
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.preflight.init_audit.facts import InitFacts


_PROBABILITY = 0.8


def find(facts: InitFacts) -> list[Finding]:
    """Find the depth inside the model at which gradients round to zero."""
    gone = next((f for f in facts.failing if f.what == "vanishes" and f.name is not None), None)
    if gone is None:
        return []
    severity: Severity = "warning" if gone.format == "float16" else "error"
    concerns_it = facts.dtype == gone.format or severity == "error"
    return [
        RULE.finding(
            severity if concerns_it else "info",
            _PROBABILITY,
            f"At depth {gone.depth} of {len(facts.passed.units)} ({gone.name}) the gradient's entries are below "
            f"{number(gone.limit)}, the smallest number of {gone.format}: without loss scaling they vanish there.",
            where=(gone.name or "",),
        )
    ]


RULE: Rule[InitFacts] = Rule(
    id="gradient_underflow",
    title="Gradients are too small for the number format",
    find=find,
    doc=__doc__,
    family="number formats",
    remedies=("grad_scaler",),
)
