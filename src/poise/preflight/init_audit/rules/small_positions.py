"""Some positions of the residual stream begin too small.

## What it is
Most vectors that a Transformer begins with are of usual size, but those at some positions of the sequence are far
smaller: register or class tokens that were initialised with a standard deviation of 0.02 beside embeddings of 1.

## Why it hurts
The derivative of a layer normalisation is one over the standard deviation of its input, at each position by itself. The
gradient of a register of standard deviation 0.02 is multiplied by 50: its updates are far larger than those of the
other vectors, or dominate the norm that the gradient is clipped to.

## How it is detected
At the first normalisation, the gradient amplification of a position (the median over the examples of one over the
standard deviation of its input) is 5 or more, while the median over positions is below 5. Where most positions are
small, it is `small_residual_stream`. Learned vectors of the model with that standard deviation are named.

## What cures it
Initialise these vectors with the standard deviation of the others.

```python
self.register = nn.Parameter(0.02 * torch.randn(4, dim))  # bad beside embeddings of standard deviation 1
self.register = nn.Parameter(torch.randn(4, dim))  # good
```

## References
- Takase et al., *Spike no more: stabilizing the pre-training of large language models*, 2025, arXiv:2312.16903
- Darcet et al., *Vision transformers need registers*, ICLR 2024, arXiv:2309.16588
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from poise.preflight.init_audit.rules.small_residual_stream import LIMIT
from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.listing import listing
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.preflight.init_audit.facts import InitFacts


_NEAR = 1.5  # factor between two standard deviations that may be the same vectors'
_PROBABILITY = 0.8


def find(facts: InitFacts) -> list[Finding]:
    """Find positions whose vectors are small at the first normalisation, where most are not."""
    first = next(iter(facts.passed.norms), None)
    known = [] if first is None else [a for a in first.by_position if a == a]  # NaN: constant in every example
    if first is None or not known or median(known) >= LIMIT:
        return []
    small = {i: a for i, a in enumerate(first.by_position) if a >= LIMIT}
    if not small:
        return []
    largest = max(small.values())
    names = [n for n, std in facts.passed.vectors.items() if 1 / _NEAR < std * median(small.values()) < _NEAR]
    few = f"{len(small)} of {len(first.by_position)} positions (counted from 0: {listing([str(i) for i in small])})"
    text = (
        f"At {few} the input of {first.name} is small: its derivative amplifies gradients up to {number(largest)} "
        f"times there, and {number(median(known))} times at the median position."
    )
    if names:
        text += f" Learned vectors with such a standard deviation: {listing(names)}."
    return [
        RULE.finding(
            "warning",
            _PROBABILITY,
            text,
            where=(*names, first.name),
            evidence=(Evidence(f"norm_amplification[{first.name}]", largest, LIMIT),),
        )
    ]


RULE: Rule[InitFacts] = Rule(
    id="small_positions",
    title="Some positions of the stream begin too small",
    find=find,
    doc=__doc__,
    family="activations and logits",
)
