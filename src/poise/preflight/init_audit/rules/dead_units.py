"""Units are dead from the start.

## What it is
More than half of the units of a ReLU are zero for everything in this batch, before the first step.

## Why it hurts
Such a unit gets no gradient and, unless the layers before it move its input, never will: the layer is narrower than its
size.

## How it is detected
The fraction of a ReLU's units that are zero for all values of the batch is above one half, with at least 16 values per
unit (few values are weak evidence). It is an error above nine tenths.

## What cures it
Biases that begin at zero, inputs with mean 0 and standard deviation 1, or an activation that is not flat on one side.

```python
nn.init.constant_(layer.bias, -1.0)  # bad before a ReLU
nn.init.zeros_(layer.bias)  # good
```

## References
- Maas, Hannun and Ng, *Rectifier nonlinearities improve neural network acoustic models*, ICML workshop 2013
- Lu et al., *Dying ReLU and initialization: theory and numerical examples*, 2019, arXiv:1903.06733
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule

if TYPE_CHECKING:
    from poise.preflight.init_audit.facts import InitFacts


_DEAD, _MANY, _ENOUGH_VALUES = 0.5, 0.9, 16
_PROBABILITY = 0.8


def find(facts: InitFacts) -> list[Finding]:
    """Find ReLUs most of whose units are zero for the whole batch."""
    dead = [r for r in facts.passed.rectified if r.dead > _DEAD and r.rows >= _ENOUGH_VALUES]
    dead.sort(key=lambda r: -r.dead)
    if not dead:
        return []
    worst = dead[0]
    return [
        RULE.finding(
            "error" if worst.dead > _MANY else "warning",
            _PROBABILITY,
            f"{100 * worst.dead:.0f} % of the units of {worst.name} are zero for all {worst.rows} values of this "
            f"batch, and {len(dead)} such ReLU{'s have' if len(dead) > 1 else ' has'} more than half: "
            "they get no gradient.",
            where=tuple(r.name for r in dead),
            evidence=(Evidence(f"dead_units[{worst.name}]", worst.dead, _DEAD),),
        )
    ]


RULE: Rule[InitFacts] = Rule(
    id="dead_units",
    title="Units are dead from the start",
    find=find,
    doc=__doc__,
    family="activations and logits",
    remedies=("zero_bias",),
)
