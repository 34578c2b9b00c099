"""The signal grows over depth.

## What it is
The output of each block (or layer) is larger than its input, so that the signal grows exponentially with depth.

## Why it hurts
The gradient grows with it on its way back, the first step is far too long for the first layers, and in half precision
the signal overflows. A network that grows by 2 a block is 1,000 times larger after ten.

## How it is detected
The mean square of the signal at the last depth is more than 100 times that at the first (an error from a factor of a
million on), or the signal overflows float16 inside the model. The report gives the factor per block, beside what
mean-field theory predicts for a ReLU network with these weights, and the depth at which the range of number formats
ends.

## What cures it
In residual networks, factors on the branches whose squares have a bounded sum. In others, normalisation, or an
initialisation that keeps the variance. In Transformers, small weights where branches end.

```python
x = x + branch(x)  # bad 100 times over: the variance doubles with each
x = x + branch(x) / 100**0.5  # good: all together multiply it by e at most
```

## References
- He et al., *Delving deep into rectifiers*, ICCV 2015, arXiv:1502.01852
- Hayou et al., *Stable ResNet*, AISTATS 2021, arXiv:2010.12859
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.preflight.init_audit.rules.growth import growth_remedies
from poise.preflight.init_audit.rules.signal_size import LIMIT, signal_size
from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule

if TYPE_CHECKING:
    from poise.preflight.init_audit.facts import InitFacts


_PROBABILITY = 0.95


def find(facts: InitFacts) -> list[Finding]:
    """Find a signal that grows by more than a hundred over the whole depth."""
    size = signal_size(facts)
    if size is None or not size.grows:
        return []
    return [
        RULE.finding(
            size.severity,
            _PROBABILITY,
            size.text,
            where=(size.where,),
            evidence=(Evidence("mean_square_ratio", size.ratio, LIMIT if size.ratio > 1 else 1 / LIMIT),),
            remedies=growth_remedies(facts),
        )
    ]


RULE: Rule[InitFacts] = Rule(
    id="signal_growth",
    title="The signal grows over depth",
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
