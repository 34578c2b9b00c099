"""The first forward pass makes NaN or infinity.

## What it is
Before the first step, the output of a layer or the loss is not a finite number on this batch.

## Why it hurts
The gradient of such a loss is NaN, and the first optimizer step makes every weight NaN.

## How it is detected
Exact: the largest magnitude that each block (or layer) puts out is infinite or NaN, or the loss is. The report names
the first depth at which that is so.

## What cures it
What keeps signals at their size over depth: factors on residual branches, normalisation, an initialisation that keeps
the variance; or a number format with a larger range.

```python
model = model.half()  # bad where signals grow past 65,504
model = model.bfloat16()  # good: the range of float32
```

## References
- Micikevicius et al., *Mixed precision training*, ICLR 2018, arXiv:1710.03740
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from poise.preflight.init_audit.rules.growth import growth_remedies
from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.preflight.init_audit.facts import InitFacts


_PROBABILITY = 0.95


def find(facts: InitFacts) -> list[Finding]:
    """Find the first depth at which the signal is not finite, or a loss that is not."""
    depth = len(facts.passed.units)
    for i, unit in enumerate(facts.passed.units):
        if not math.isfinite(unit.absmax):
            dtype = str(unit.dtype).removeprefix("torch.")
            return [
                RULE.finding(
                    "error",
                    _PROBABILITY,
                    f"At depth {i + 1} of {depth} ({unit.name}) the signal is no longer finite in {dtype}.",
                    where=(unit.name,),
                    evidence=(Evidence(f"act_absmax[{unit.name}]", unit.absmax),),
                    remedies=growth_remedies(facts),
                )
            ]
    if not math.isfinite(facts.passed.loss):
        return [RULE.finding("error", _PROBABILITY, f"The loss is {number(facts.passed.loss)}.", remedies=())]
    return []


RULE: Rule[InitFacts] = Rule(
    id="forward_nonfinite",
    title="The first forward pass makes NaN or infinity",
    find=find,
    doc=__doc__,
    exact=True,
    family="number formats",
    remedies=(
        "stabilize_residuals",
        "add_layer_norm",
        "he_init",
        "spike_free_init",
    ),
)
