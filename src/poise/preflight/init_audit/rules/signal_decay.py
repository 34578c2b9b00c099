"""The signal shrinks over depth.

## What it is
The output of each layer is smaller than its input, so that the signal shrinks exponentially with depth.

## Why it hurts
The last layers depend on the input only weakly, the gradient of the first layers vanishes with the signal, and in half
precision both round to zero.

## How it is detected
The mean square of the signal at the last depth is less than a hundredth of that at the first (an error below a
millionth). The report gives the factor per block, beside what mean-field theory predicts for a ReLU network with these
weights, and the depth at which the range of number formats ends.

## What cures it
An initialisation that keeps the variance (He for ReLU, Xavier for tanh), normalisation, or shortcuts.

```python
nn.init.normal_(layer.weight, std=0.01)  # bad for 512 inputs: keeps a twentieth
nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # good
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
    """Find a signal that shrinks by more than a hundred over the whole depth."""
    size = signal_size(facts)
    if size is None or size.grows:
        return []
    return [
        RULE.finding(
            size.severity,
            _PROBABILITY,
            size.text,
            where=(size.where,),
            evidence=(Evidence("mean_square_ratio", size.ratio, 1 / LIMIT),),
            remedies=growth_remedies(facts),
        )
    ]


RULE: Rule[InitFacts] = Rule(
    id="signal_decay",
    title="The signal shrinks over depth",
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
