"""Epsilon outweighs the gradients from the start.

## What it is
The gradient of a parameter is so small that the number which Adam-like optimizers add to their divisor is not small
beside it.

## Why it hurts
Updates there shrink with the gradient, as those of SGD with a tiny learning rate would: the parameter hardly learns.

## How it is detected
The root mean square of the gradient of a parameter on this batch is below ten times the optimizer's epsilon.

## What cures it
A smaller epsilon.

```python
torch.optim.AdamW(model.parameters(), eps=1e-3)  # bad where gradients are of size 1e-4
torch.optim.AdamW(model.parameters(), eps=1e-12)  # good
```

## References
- Wortsman et al., *Small-scale proxies for large-scale Transformer training instabilities*, ICLR 2024,
  arXiv:2309.14322
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.listing import listing
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.preflight.init_audit.facts import InitFacts


_BESIDE = 10.0  # times epsilon, which a gradient has to exceed
_PROBABILITY = 0.95


def find(facts: InitFacts) -> list[Finding]:
    """Find parameters whose gradient is near epsilon or below."""
    eps = facts.eps
    if eps is None:
        return []
    small = {name: rms for name, rms in facts.passed.parameter_grads.items() if rms and 0 < rms < _BESIDE * eps}
    names = sorted(small, key=lambda name: small[name])
    if not names:
        return []
    return [
        RULE.finding(
            "warning",
            _PROBABILITY,
            f"The gradient of {listing(names)} is near or below the optimizer's epsilon {number(eps)} "
            f"(root mean square {number(small[names[0]])}): updates shrink with it.",
            where=names,
            evidence=(Evidence(f"grad_rms[{names[0]}]", small[names[0]], eps),),
        )
    ]


RULE: Rule[InitFacts] = Rule(
    id="eps_dominates",
    title="Epsilon outweighs the gradients from the start",
    find=find,
    doc=__doc__,
    family="optimizer",
    remedies=("adam_eps",),
)
