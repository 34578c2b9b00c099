"""A normalisation of constant vectors.

## What it is
Some input vectors of a layer normalisation have equal entries, for example padding with zeros.

## Why it hurts
Such a vector has the standard deviation 0: the layer puts out zeros (or its bias) whatever the vector was, and
multiplies the gradient by one over the root of its epsilon, 316 with the usual 1e-5.

## How it is detected
Exact: the fraction of vectors whose entries are all equal is above 0. It is a warning if it is above one half.

## What cures it
Mask such positions out of the loss, or give the layer an input that varies: a learned vector for padding, a bias.

```python
x = nn.functional.pad(x, (0, 0, 0, missing))  # bad before nn.LayerNorm: rows of zeros
x = torch.cat([x, padding.expand(missing, -1)])  # good: a learned vector
```

## References
- Ba, Kiros and Hinton, *Layer normalization*, 2016, arXiv:1607.06450
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Finding
from poise.rules.rule import Rule

if TYPE_CHECKING:
    from poise.preflight.init_audit.facts import InitFacts


_HALF = 0.5
_PROBABILITY = 0.95


def find(facts: InitFacts) -> list[Finding]:
    """Find normalisations of vectors without any spread."""
    norms = [norm for norm in facts.passed.norms if norm.degenerate > 0]
    if not norms:
        return []
    worst = max(norms, key=lambda norm: norm.degenerate)
    return [
        RULE.finding(
            "warning" if worst.degenerate > _HALF else "info",
            _PROBABILITY,
            f"{100 * worst.degenerate:.0f} % of the input vectors of {worst.name} have equal entries: it puts out "
            "zeros (or its bias) and amplifies gradients by one over the root of its epsilon.",
            where=tuple(norm.name for norm in norms),
        )
    ]


RULE: Rule[InitFacts] = Rule(
    id="degenerate_norm",
    title="A normalisation of constant vectors",
    find=find,
    doc=__doc__,
    exact=True,
    family="activations and logits",
)
