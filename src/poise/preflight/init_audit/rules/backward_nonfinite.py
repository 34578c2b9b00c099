"""The first backward pass makes NaN or infinity.

## What it is
Before the first step, signals and loss are finite on this batch, but a gradient on its way back is not.

## Why it hurts
The first optimizer step makes every weight NaN whose gradient is.

## How it is detected
Exact: the norm of the gradient at a block (or layer) is infinite or NaN. The report names the depth nearest to the
loss, where it begins.

## What cures it
What keeps gradients at their size over depth: factors on residual branches, normalisation, an initialisation that
keeps the variance. A root, logarithm or division at zero has to be moved away from zero.

```python
torch.sqrt(x)  # bad where x is 0: the derivative is infinite
torch.sqrt(x + 1e-8)  # good
```

## References
- Pascanu, Mikolov and Bengio, *On the difficulty of training recurrent neural networks*, ICML 2013, arXiv:1211.5063
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from poise.preflight.init_audit.rules.growth import growth_remedies
from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule

if TYPE_CHECKING:
    from poise.preflight.init_audit.facts import InitFacts


_PROBABILITY = 0.95


def find(facts: InitFacts) -> list[Finding]:
    """Find the depth at which a gradient stops being finite, where all before it was finite."""
    units, depth = facts.passed.units, len(facts.passed.units)
    if not math.isfinite(facts.passed.loss) or not all(math.isfinite(unit.absmax) for unit in units):
        return []
    for i, unit in reversed(list(enumerate(units))):
        if unit.grad_norm is not None and not math.isfinite(unit.grad_norm):
            return [
                RULE.finding(
                    "error",
                    _PROBABILITY,
                    f"On its way back, the gradient is no longer finite at depth {i + 1} of {depth} ({unit.name}).",
                    where=(unit.name,),
                    evidence=(Evidence(f"grad_norm[{unit.name}]", unit.grad_norm),),
                    remedies=growth_remedies(facts),
                )
            ]
    return []


RULE: Rule[InitFacts] = Rule(
    id="backward_nonfinite",
    title="The first backward pass makes NaN or infinity",
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
