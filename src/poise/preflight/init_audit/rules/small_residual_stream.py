"""The residual stream starts too small.

## What it is
The first vectors of a Transformer, its embeddings, have a standard deviation far below 1 (0.02 is a common one), and so
has the stream that its blocks add to.

## Why it hurts
The derivative of a layer normalisation is one over the standard deviation of its input. At 0.02 the first one
multiplies gradients by 50; on small streams they grow through the first blocks, and the loss spikes in long runs.

## How it is detected
The gradient amplification of a normalisation, one over the standard deviation of its input, is 5 or more at the median
position of the sequence (a few small positions are `small_positions`): a warning at the first normalisation, *info* at
a later one or where no embedding is that small.

## What cures it
Embeddings of standard deviation 1: multiply them, or initialise them so.

```python
x = embedding(tokens)  # bad with weights of standard deviation 0.02
x = embedding(tokens) / 0.02  # good, or nn.init.normal_(embedding.weight, std=1.0)
```

## References
- Takase et al., *Spike no more: stabilizing the pre-training of large language models*, 2025, arXiv:2312.16903
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.preflight.init_audit.facts import InitFacts


LIMIT = 5.0
"""Of the gradient amplification."""

_NEAR = 1.5  # factor between the size of embeddings and of the stream that begins with them
_PROBABILITY = 0.8


def find(facts: InitFacts) -> list[Finding]:
    """Find normalisations whose input is so small that they amplify gradients."""
    norms, embeddings = facts.passed.norms, facts.passed.embeddings
    worst = max(norms, key=lambda norm: norm.typical, default=None)
    if worst is None or worst.typical < LIMIT:
        return []
    is_first = norms[0].typical >= LIMIT
    shown = norms[0] if is_first else worst
    text = (
        f"The input of {shown.name} has a mean standard deviation of {number(shown.std)}; its derivative "
        f"amplifies gradients about {number(shown.typical)} times."
    )
    name, std = max(embeddings.items(), key=lambda item: item[1], default=("", 1.0))
    is_embedding_small = std < 1 / LIMIT * _NEAR
    if is_embedding_small:
        text = (
            f"Embeddings have a standard deviation of {number(std)} ({name}). {text} "
            "With embeddings of standard deviation 1 it would be 1."
        )
    return [
        RULE.finding(
            "warning" if is_first and is_embedding_small else "info",
            _PROBABILITY,
            text,
            where=(shown.name,),
            evidence=(Evidence(f"norm_amplification[{shown.name}]", shown.typical, LIMIT),),
            remedies=None if is_embedding_small else (),
        )
    ]


RULE: Rule[InitFacts] = Rule(
    id="small_residual_stream",
    title="The residual stream starts too small",
    find=find,
    doc=__doc__,
    family="activations and logits",
    remedies=("scale_embedding",),
)
