"""Start the residual stream at standard deviation 1.

## What it does
`poise.nn.scale_embedding` multiplies the output of embeddings so that its standard deviation is 1; their weights stay
as they are, so that a head that shares them is not changed.

## When it helps
Against `small_residual_stream`: the first layer normalisations then do not amplify gradients.

## What it costs
One product per token.

## Making it permanent
Call it once, after the model is made and before the optimizer is.

## References
- Takase et al., *Spike no more: stabilizing the pre-training of large language models*, 2025, arXiv:2312.16903
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="scale_embedding",
    title="Start the residual stream at standard deviation 1",
    doc=__doc__,
    kind="surgery",
    code=(
        "from poise.nn import scale_embedding\n"
        "\n"
        'print(scale_embedding(model, "unit").report())  # a tied head still uses the unscaled weights\n'
    ),
)
