"""The batches are too small for the learning rate.

## What it is
Gradient descent with all data would be stable at this learning rate; SGD with batches of this size is not: the noise
of the batches makes the mean squared distance from the minimum grow.

## Why it hurts
The mean over runs moves away from the minimum, by rare bad batches even where a typical run still returns. The loss
cannot come to rest there, however long it is trained.

## How it is detected
At a minimum that fits every example, the largest stable learning rate in mean square follows from the Hessians of
single examples: exactly for small problems, else as an upper bound from their second and fourth moments. The finding is
made if the learning rate of plain SGD is above that limit and below that of full batches.

## What cures it
A larger batch (the report gives the smallest stable one) or a lower learning rate.

```python
DataLoader(data, batch_size=4)  # bad where 16 is the smallest stable batch of the report
DataLoader(data, batch_size=32)  # good
```

## References
- Mulayoff and Michaeli, *Exact mean square linear stability analysis for SGD*, COLT 2024, arXiv:2306.07850
- Wu and Su, *The implicit regularization of dynamical stability in stochastic gradient descent*, ICML 2023,
  arXiv:2305.17490
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.dynamics.training_audit.facts import TrainingFacts


_EXACT, _APPROXIMATE = 0.95, 0.7


def find(facts: TrainingFacts) -> list[Finding]:
    """Find a learning rate between the limits with and without the noise of mini-batches."""
    noise = facts.noise
    if noise is None or noise.lr is None or noise.stable is not False or facts.batch_size == facts.n:
        return []
    if noise.lr > noise.lr_gd:
        return []  # not a matter of noise
    limit = noise.lr_exact if noise.lr_exact is not None else min(noise.lr_gd, noise.lr_moment)
    least = noise.batch_min(noise.lr)
    cure = f"batches of at least {least} are stable" if least is not None else "no batch size is stable there"
    kind = "the exact limit" if noise.lr_exact is not None else "a bound on the limit"
    return [
        RULE.finding(
            "warning",
            _APPROXIMATE if noise.approximate else _EXACT,
            f"With batches of {noise.batch_size}, {kind} in mean square is {number(limit)}, below the learning rate "
            f"{number(noise.lr)}; at that learning rate {cure}.",
            evidence=(Evidence("lr", noise.lr, limit),),
        )
    ]


RULE: Rule[TrainingFacts] = Rule(
    id="unstable_with_batch_noise",
    title="The batches are too small for the learning rate",
    find=find,
    doc=__doc__,
    family="learning rate",
)
