"""Parameters without a gradient.

## What it is
The loss of this batch does not depend on some trainable parameters.

## Why it hurts
They stay as they were initialised. Often that is fine (a head that this batch does not use); where it is not, the model
is smaller than its number of parameters.

## How it is detected
Exact: after the backward pass they have no gradient.

## What cures it
Use them in the forward pass, look for a `detach()`, or freeze them explicitly.

```python
features = backbone(x).detach()  # bad if the backbone is to learn
features = backbone(x)  # good
```

## References
- PyTorch documentation, *Autograd mechanics*, section *Locally disabling gradient computation*
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Finding
from poise.rules.rule import Rule
from poise.tools.listing import listing

if TYPE_CHECKING:
    from poise.preflight.init_audit.facts import InitFacts


_PROBABILITY = 0.95


def find(facts: InitFacts) -> list[Finding]:
    """Find trainable parameters that no gradient reaches."""
    names = tuple(name for name, rms in facts.passed.parameter_grads.items() if rms is None)
    if not names:
        return []
    text = f"The loss does not depend on {listing(names)} on this batch: no gradient arrives there."
    return [RULE.finding("info", _PROBABILITY, text, where=names)]


RULE: Rule[InitFacts] = Rule(
    id="orphan_parameters",
    title="Parameters without a gradient",
    find=find,
    doc=__doc__,
    exact=True,
    family="script",
)
