"""Penalise singular values that are not one.

## What it does
A penalty pulls the largest singular value of every layer to one, and biases to zero.

## When it helps
Where later tasks are learned less well than earlier ones, over many tasks or a long stream.

## What it costs
About a third more time for a small perceptron's step, less for larger batches.

## Making it permanent
Make it once, keep it in the checkpoint by its `state_dict`, and add it to the loss; 1e-2 is a good start.

## References
- Lewandowski et al., *Learning continually by spectral regularization*, ICLR 2025, arXiv:2406.06811
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="spectral_penalty",
    title="Penalise singular values that are not one",
    doc=__doc__,
    kind="code",
    code=(
        "from poise.losses import SpectralRegularizer\n"
        "\n"
        "penalty = SpectralRegularizer(model)\n"
        "# in every step:\n"
        "loss = loss + 1e-2 * penalty()\n"
    ),
)
