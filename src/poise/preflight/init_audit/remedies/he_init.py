"""Initialise weights to keep the signal's size.

## What it does
Each weight gets the variance 2 / (number of inputs), with which the mean square of a signal is the same after a linear
layer and a ReLU as before; biases begin at zero.

## When it helps
Against signals and gradients that grow or shrink with depth in networks without normalisation and shortcuts.

## What it costs
Nothing.

## Making it permanent
Run the lines shown once, after the model is made. With tanh, take `nn.init.xavier_normal_`.

## References
- He et al., *Delving deep into rectifiers*, ICCV 2015, arXiv:1502.01852
- Glorot and Bengio, *Understanding the difficulty of training deep feedforward neural networks*, AISTATS 2010
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="he_init",
    title="Initialise weights to keep the signal's size",
    doc=__doc__,
    kind="code",
    code=(
        "for layer in model.modules():\n"
        "    if isinstance(layer, nn.Linear | nn.Conv2d):\n"
        '        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # xavier_normal_ with tanh\n'
        "        if layer.bias is not None:\n"
        "            nn.init.zeros_(layer.bias)\n"
    ),
)
