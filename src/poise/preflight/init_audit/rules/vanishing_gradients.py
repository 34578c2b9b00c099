"""The gradient vanishes on its way back.

## What it is
Before anything was learned, the gradient at the first block (or layer) is much smaller than at the last: the Jacobians
on its way shrink it.

## Why it hurts
The first layers stay as they were initialised; what they destroy of the input, later layers cannot restore.

## How it is detected
The norm of the gradient at the first depth is less than a hundredth of that at the last (an error below a ten
thousandth). The report names the block with the smallest gain, measured by random vectors that go back through each
block.

## What cures it
Shortcuts, normalisation, activations that do not saturate, an initialisation that keeps the variance.

```python
[nn.Linear(64, 64), nn.Sigmoid()] * 20  # bad: each layer keeps at most a quarter of the gradient
x = x + block(norm(x))  # good: the gradient has a path around every block
```

## References
- Glorot and Bengio, *Understanding the difficulty of training deep feedforward neural networks*, AISTATS 2010
- Hayou et al., *Stable ResNet*, AISTATS 2021, arXiv:2010.12859
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.preflight.init_audit.rules.growth import gain_sentence, growth_remedies
from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.preflight.init_audit.facts import InitFacts


_LIMIT, _SEVERE = 1e-2, 1e-4  # norm at the first depth over that at the last
_PROBABILITY = 0.95


def find(facts: InitFacts) -> list[Finding]:
    """Find a gradient that is much smaller at the first depth than at the last."""
    ratio, units = facts.growth.gradient_ratio, facts.passed.units
    if ratio is None or len(units) < 3 or not 0 < ratio < _LIMIT:
        return []
    first = units[0].name
    return [
        RULE.finding(
            "error" if ratio < _SEVERE else "warning",
            _PROBABILITY,
            f"The gradient vanishes on its way back: its norm at the first {facts.unit} ({first}) is {number(ratio)} "
            f"times that at the last.{gain_sentence(facts, min)}",
            where=(first,),
            evidence=(Evidence("gradient_ratio", ratio, _LIMIT),),
            remedies=growth_remedies(facts),
        )
    ]


RULE: Rule[InitFacts] = Rule(
    id="vanishing_gradients",
    title="The gradient vanishes on its way back",
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
