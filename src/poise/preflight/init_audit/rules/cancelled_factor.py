"""A normalisation divides a factor out again.

## What it is
A tensor is multiplied by a number, and what comes out goes straight into a normalisation that uses the statistics of
its input: batch, layer, group norm, or one that was written by hand.

## Why it hurts
The factor has no effect on the output. A factor on a residual branch that is to keep gradients at their size does not
when it stands before the branch's last batch norm; a learned one gets no gradient.

## How it is detected
Exact: the normalisation puts out the same (to one per cent) when its input is divided by the factor. A batch norm in
evaluation does not, nor does one whose epsilon outweighs the variance.

## What cures it
Put the factor behind the normalisation.

```python
x = x + self.norm(scale * self.conv(x))  # bad: the norm divides by scale
x = x + scale * self.norm(self.conv(x))  # good
```

## References
- Hayou et al., *Stable ResNet*, AISTATS 2021, arXiv:2010.12859
- Ioffe and Szegedy, *Batch normalization*, ICML 2015, arXiv:1502.03167, section 3.3
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Finding
from poise.rules.rule import Rule
from poise.tools.listing import listing
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.preflight.init_audit.facts import InitFacts


_PROBABILITY = 0.95


def find(facts: InitFacts) -> list[Finding]:
    """Find normalisations whose input was multiplied by a number."""
    factors = facts.passed.factors
    if not factors:
        return []
    names = tuple(factor.name for factor in factors)
    text = (
        f"The input of {listing(names)} is a product with {number(factors[0].factor)}, which the normalisation "
        "divides out: the factor has no effect."
    )
    return [RULE.finding("warning", _PROBABILITY, text, where=names)]


RULE: Rule[InitFacts] = Rule(
    id="cancelled_factor",
    title="A normalisation divides a factor out again",
    find=find,
    doc=__doc__,
    exact=True,
    family="activations and logits",
)
