"""Normalise the input of each block.

## What it does
A layer normalisation at the beginning of each residual branch (or layer) gives it inputs of mean 0 and standard
deviation 1, however large the signal has grown.

## When it helps
Against signals that grow or shrink with depth, and gradients that do so with them.

## What it costs
Two passes over the activations per block, and two vectors of parameters. A trained model has to be trained again.

## Making it permanent
Put it into the block's definition, as in the lines shown.

## References
- Ba, Kiros and Hinton, *Layer normalization*, 2016, arXiv:1607.06450
- Xiong et al., *On layer normalization in the Transformer architecture*, ICML 2020, arXiv:2002.04745
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="add_layer_norm",
    title="Normalise the input of each block",
    doc=__doc__,
    kind="code",
    code=(
        "class Block(nn.Module):\n"
        "    def forward(self, x):\n"
        "-       return x + self.branch(x)\n"
        "+       return x + self.branch(self.norm(x))  # self.norm = nn.LayerNorm(width)\n"
    ),
    language="diff",
)
