"""Different inputs become equal.

## What it is
With depth, the vectors of different inputs (of different positions, in a sequence) turn into the same direction.

## Why it hurts
The last layers cannot distinguish inputs, so the loss cannot be lowered below that of a constant output until the
layers before have changed.

## How it is detected
The mean cosine between the vectors of different inputs exceeds 0.99 at some depth, while it was at most 0.9 at the
first one.

## What cures it
What keeps correlations from growing with depth: smaller factors on residual branches, normalisation, an initialisation
that keeps the variance.

```python
x = x + branch(x)  # bad many times over with ReLUs: each brings inputs closer
x = x + branch(x) / depth**0.5  # good: they come closer by a bounded amount
```

## References
- Hayou et al., *Stable ResNet*, AISTATS 2021, arXiv:2010.12859
- Poole et al., *Exponential expressivity in deep neural networks through transient chaos*, NIPS 2016, arXiv:1606.05340
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.preflight.init_audit.rules.growth import growth_remedies
from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule

if TYPE_CHECKING:
    from poise.preflight.init_audit.facts import InitFacts


_ALIKE, _DIFFERENT = 0.99, 0.9  # cosines
_PROBABILITY = 0.8


def find(facts: InitFacts) -> list[Finding]:
    """Find the depth from which on all inputs point into one direction."""
    units = facts.passed.units
    if len(units) < 3 or units[0].cosine is None or units[0].cosine > _DIFFERENT:
        return []
    for i, unit in enumerate(units):
        if unit.cosine is not None and unit.cosine > _ALIKE:
            return [
                RULE.finding(
                    "warning",
                    _PROBABILITY,
                    f"From depth {i + 1} of {len(units)} ({unit.name}) on, different inputs hardly differ: "
                    f"the mean cosine of their vectors is {unit.cosine:.4f}, after {units[0].cosine:.2f} at "
                    f"{units[0].name}.",
                    where=(unit.name,),
                    evidence=(Evidence(f"cosine[{unit.name}]", unit.cosine, _ALIKE),),
                    remedies=growth_remedies(facts),
                )
            ]
    return []


RULE: Rule[InitFacts] = Rule(
    id="indistinguishable_inputs",
    title="Different inputs become equal",
    find=find,
    doc=__doc__,
    family="activations and logits",
    remedies=(
        "stabilize_residuals",
        "add_layer_norm",
        "he_init",
        "spike_free_init",
    ),
)
