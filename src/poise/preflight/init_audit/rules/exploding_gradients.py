"""The gradient explodes on its way back.

## What it is
Before anything was learned, the gradient at the first block (or layer) is many times larger than at the last: the
Jacobians on its way amplify it.

## Why it hurts
The first step moves the first layers far out of the region in which the loss is nearly linear.

## How it is detected
The norm of the gradient at the first depth is more than 10 times that at the last (an error from 1,000 times on). The
report names the block with the largest gain, measured by random vectors that go back through each block.

## What cures it
Factors on residual branches, normalisation, an initialisation that keeps the variance; gradient clipping against the
first steps.

```python
nn.init.normal_(layer.weight, std=1.0)  # bad: a gain of 16 for 256 outputs
nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # good: a gain of about 1
```

## References
- Glorot and Bengio, *Understanding the difficulty of training deep feedforward neural networks*, AISTATS 2010
- Hayou et al., *Stable ResNet*, AISTATS 2021, arXiv:2010.12859
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from poise.preflight.init_audit.rules.growth import gain_sentence, growth_remedies
from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.preflight.init_audit.facts import InitFacts


_LIMIT, _SEVERE = 10.0, 1e3  # norm at the first depth over that at the last
_PROBABILITY = 0.95


def find(facts: InitFacts) -> list[Finding]:
    """Find a gradient that is much larger at the first depth than at the last."""
    ratio, units = facts.growth.gradient_ratio, facts.passed.units
    if ratio is None or len(units) < 3 or not _LIMIT < ratio < math.inf:
        return []
    first = units[0].name
    return [
        RULE.finding(
            "error" if ratio > _SEVERE else "warning",
            _PROBABILITY,
            f"The gradient explodes on its way back: its norm at the first {facts.unit} ({first}) is {number(ratio)} "
            f"times that at the last.{gain_sentence(facts, max)}",
            where=(first,),
            evidence=(Evidence("gradient_ratio", ratio, _LIMIT),),
            remedies=growth_remedies(facts),
        )
    ]


RULE: Rule[InitFacts] = Rule(
    id="exploding_gradients",
    title="The gradient explodes on its way back",
    find=find,
    doc=__doc__,
    family="gradients",
    remedies=(
        "stabilize_residuals",
        "add_layer_norm",
        "he_init",
        "spike_free_init",
    ),
)
