"""Shortcuts are multiplied by a factor.

## What it is
A residual sum adds its branch to a multiple of its input, not to the input itself: x * 0.9 + branch(x).

## Why it hurts
Through the shortcuts alone, signal and gradient are multiplied by the product of all these factors: 0.9 to the power of
30 is 0.04. The first blocks then learn through the branches only, as in a network without shortcuts; factors above 1
make both grow exponentially.

## How it is detected
The product of the factors on all shortcuts is below 1/2 or above 2. It is a warning where the product is below a tenth
or above ten and the gradient at the first block differs from that at the last by a factor of 2 in the same direction,
and *info* otherwise (as with a factor of 0.71 on shortcut and branch, where gradients keep their size).

## What cures it
Leave the shortcut alone, and put the factor on the branch.

```python
x = 0.9 * x + branch(x)  # bad in deep networks
x = x + 0.1 * branch(x)  # good
```

## References
- He et al., *Identity mappings in deep residual networks*, ECCV 2016, arXiv:1603.05027, section 3
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.preflight.init_audit.facts import InitFacts


_NOTABLE, _GRAVE = math.log(2), math.log(10)  # of the product's size
_PROBABILITY = 0.9


def find(facts: InitFacts) -> list[Finding]:
    """Find shortcuts whose factors multiply to something far from 1."""
    sums = facts.passed.residuals
    scaled = [r for r in sums if r.gain != 1]
    if not scaled:
        return []
    log_product = sum(math.log(r.gain) if r.gain > 0 else -math.inf for r in sums)
    if abs(log_product) <= _NOTABLE:
        return []
    ratio = facts.growth.gradient_ratio
    log_ratio = 0.0 if ratio is None or not ratio > 0 else math.log(ratio)
    follows = abs(log_ratio) > _NOTABLE and (log_ratio > 0) == (log_product > 0)
    product = math.exp(min(log_product, 700.0))
    worst = max(scaled, key=lambda r: abs(math.log(r.gain)) if r.gain > 0 else math.inf)
    text = (
        f"{len(scaled)} of {len(sums)} shortcuts are multiplied by a factor (at {worst.name} by {number(worst.gain)}): "
        f"through shortcuts alone, a gradient that reaches the first {facts.unit} is {number(product)} times that at "
        "the last."
    )
    if ratio is not None:
        text += f" That of this batch is {number(ratio)} times."
    return [
        RULE.finding(
            "warning" if follows and abs(log_product) > _GRAVE else "info",
            _PROBABILITY,
            text,
            where=tuple(dict.fromkeys(r.name for r in scaled)),
            evidence=(Evidence("shortcut_product", product, 0.5 if log_product < 0 else 2.0),),
        )
    ]


RULE: Rule[InitFacts] = Rule(
    id="shortcut_gain",
    title="Shortcuts are multiplied by a factor",
    find=find,
    doc=__doc__,
    family="gradients",
)
