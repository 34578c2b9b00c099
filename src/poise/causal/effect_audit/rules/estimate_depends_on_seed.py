"""The estimate depends on the seed.

## What it is
The same estimator on the same rows gives estimates that differ by a large part of a standard error, when nothing but
the seed of folds and learners changes.

## Why it hurts
Whoever runs the analysis again gets another number, and whoever tries several seeds can choose one. The interval does
not include this: it is too short.

## How it is detected
The estimator is fitted with several seeds. The finding is made if the standard deviation of the estimates is above half
a standard error: then the true error is more than 10 % larger than the one reported.

## What cures it
The median over seeds, as published for cross-fitted estimates; more folds; learners with less randomness of their own.

```python
estimates = [DRLearner(random_state=seed).fit(X, y, treatment=t).ate().estimate for seed in range(20)]
np.median(estimates)
```

## References
- Chernozhukov et al., *Double/debiased machine learning for treatment and structural parameters*, 2018,
  arXiv:1608.00060
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.causal.effect_audit.facts import EffectFacts

_MOST = 0.5


def find(facts: EffectFacts) -> list[Finding]:
    """Find a spread over seeds of more than half a standard error."""
    if not facts.seed_spread > _MOST:
        return []
    low, high = float(facts.by_seed.min()), float(facts.by_seed.max())
    return [
        RULE.finding(
            "warning",
            0.9,
            f"Over {len(facts.seeds)} seeds the average effect runs from {number(low, 3)} to {number(high, 3)}; its "
            f"standard deviation is {number(facts.seed_spread, 2)} standard errors.",
            evidence=(Evidence("seed_spread", facts.seed_spread, _MOST),),
        )
    ]


RULE: Rule[EffectFacts] = Rule(
    id="estimate_depends_on_seed",
    title="The estimate depends on the seed",
    find=find,
    doc=__doc__,
    remedies=("median_over_seeds",),
    family="randomness",
)
