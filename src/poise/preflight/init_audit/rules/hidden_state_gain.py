"""A recurrent layer multiplies its state.

## What it is
The derivative of a recurrent layer's last hidden state in its first has a norm that is far from 1: per step it is a
factor above 1.1 or below 0.9, to the power of the number of steps.

## Why it hurts
The gradient through time grows or shrinks by the same factor: it explodes, or long dependencies cannot be learned.

## How it is detected
The spectral norm of that derivative is measured by power iteration on this batch; its root of the order of the number
of steps is the gain per step. It is a warning if the gradient grows more than 1,000 times over the sequence, else
*info*: a layer may be meant to forget.

## What cures it
Layer-normalised recurrent layers, an orthogonal initialisation of the recurrent matrix, gradient clipping.

```python
nn.init.normal_(rnn.weight_hh_l0)  # bad
nn.init.orthogonal_(rnn.weight_hh_l0)  # good
```

## References
- Pascanu, Mikolov and Bengio, *On the difficulty of training recurrent neural networks*, ICML 2013, arXiv:1211.5063
- Ba, Kiros and Hinton, *Layer normalization*, 2016, arXiv:1607.06450
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.preflight.init_audit.facts import InitFacts


_LEAST, _MOST = 0.9, 1.1  # gain per step
_EXPLODES = 1e3  # over the whole sequence
_LOG_RANGE = 700.0  # of floats
_PROBABILITY = 0.8


def find(facts: InitFacts) -> list[Finding]:
    """Find recurrent layers whose gradient through time does not keep its size."""
    found = []
    for gain in facts.gains:
        if _LEAST <= gain.rho <= _MOST:
            continue
        grows = gain.rho > 1
        found.append(
            RULE.finding(
                "warning" if grows and gain.log_gain > math.log(_EXPLODES) else "info",
                _PROBABILITY,
                f"Over {gain.steps} steps {gain.name} {'multiplies' if grows else 'keeps only'} its first hidden "
                f"state's influence {'by' if grows else 'to'} {_factor(gain.log_gain)}, a factor of "
                f"{number(gain.rho)} per step: the gradient through time {'explodes' if grows else 'vanishes'}.",
                where=(gain.name,),
                evidence=(Evidence(f"hidden_state_gain[{gain.name}]", gain.rho, _MOST if grows else _LEAST),),
            )
        )
    return found


def _factor(log_gain: float) -> str:
    """Return a factor in words from its logarithm, also where the factor is beyond the range of floats."""
    if math.isfinite(log_gain) and abs(log_gain) > _LOG_RANGE:
        return f"1e{log_gain / math.log(10):+.0f}"
    return number(math.exp(log_gain))


RULE: Rule[InitFacts] = Rule(
    id="hidden_state_gain",
    title="A recurrent layer multiplies its state",
    find=find,
    doc=__doc__,
    family="gradients",
    remedies=("swap_recurrent",),
)
