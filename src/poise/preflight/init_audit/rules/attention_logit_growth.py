"""Attention logits are large from the start.

## What it is
Before the first step, products of queries and keys are so large that their softmax puts nearly all weight on single
tokens.

## Why it hurts
A saturated softmax passes almost no gradient: the model can no longer learn to which tokens to attend.

## How it is detected
The largest attention logit of a layer on this batch exceeds 50, or the entropy of its attention is below a tenth of
that of uniform attention. It is an error beyond 1,000, or if the entropy is that low.

## What cures it
Normalise queries and keys before their product, or initialise their projections smaller.

```python
attended = F.scaled_dot_product_attention(q, k, v)  # bad: nothing bounds the product
attended = F.scaled_dot_product_attention(norm_q(q), norm_k(k), v)  # good
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


_LARGE, _ALARMING, _COLLAPSED = 50.0, 1e3, 0.1
_PROBABILITY = 0.95


def find(facts: InitFacts) -> list[Finding]:
    """Find attention that is saturated before anything was learned."""
    logits = facts.passed.attention
    large = sorted((a for a in logits if a.largest > _LARGE), key=lambda a: -a.largest)
    sharp = sorted((a for a in logits if a.entropy < _COLLAPSED), key=lambda a: a.entropy)
    if not large and not sharp:
        return []
    names = tuple(dict.fromkeys(a.name for a in [*large, *sharp]))
    worst = (large or sharp)[0]
    return [
        RULE.finding(
            "error" if worst.largest > _ALARMING or worst.entropy < _COLLAPSED else "warning",
            _PROBABILITY,
            f"Attention logits of {listing(names)} reach {number(worst.largest)} before the first step "
            f"(entropy {number(worst.entropy)} of 1): little gradient passes the softmax.",
            where=names,
            evidence=(Evidence(f"attention_logit_max[{worst.name}]", worst.largest, _LARGE),),
        )
    ]


RULE: Rule[InitFacts] = Rule(
    id="attention_logit_growth",
    title="Attention logits are large from the start",
    find=find,
    doc=__doc__,
    family="activations and logits",
    remedies=("add_qk_norm",),
)
