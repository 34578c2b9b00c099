"""Initialise the ends of a Transformer's branches small.

## What it does
`poise.nn.spike_free_` initialises the weights of a pre-norm Transformer again: those of its sub-layers small, those at
the end of a residual branch smaller by the root of twice the number of blocks; `poise.nn.scale_embedding` gives
embeddings the standard deviation 1.

## When it helps
Against signals and gradients that grow over the blocks of a Transformer that has normalisations already, and against
loss spikes in its long runs.

## What it costs
Nothing. It is for models that have not been trained yet: the old weights are lost.

## Making it permanent
Run the lines shown once, after the model is made and before the optimizer is.

## References
- Takase et al., *Spike no more: stabilizing the pre-training of large language models*, 2025, arXiv:2312.16903
- Nguyen and Salazar, *Transformers without tears*, IWSLT 2019, arXiv:1910.05895
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="spike_free_init",
    title="Initialise the ends of a Transformer's branches small",
    doc=__doc__,
    kind="surgery",
    code=(
        "from poise.nn import scale_embedding, spike_free_\n"
        "\n"
        'spike_free_(model, embedding="unit")\n'
        'scale_embedding(model, "unit")\n'
    ),
)
