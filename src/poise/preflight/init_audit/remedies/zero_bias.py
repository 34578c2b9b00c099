"""Initialise biases to zero.

## What it does
Sets every bias to zero, so that about half of the units of a ReLU are above zero for a random input.

## When it helps
Against `dead_units` before the first step.

## What it costs
Nothing. It is for models that have not been trained yet.

## Making it permanent
Run the lines shown once, after the model is made. If units still die, standardise the inputs, or take an activation
that is not flat on one side.

## References
- Lu et al., *Dying ReLU and initialization: theory and numerical examples*, 2019, arXiv:1903.06733
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="zero_bias",
    title="Initialise biases to zero",
    doc=__doc__,
    kind="code",
    code=(
        "for layer in model.modules():\n"
        '    if getattr(layer, "bias", None) is not None:\n'
        "        nn.init.zeros_(layer.bias)\n"
        "# and give inputs with mean 0 and standard deviation 1, or nn.GELU() in the place of nn.ReLU()\n"
    ),
)
