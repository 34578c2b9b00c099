"""Normalise recurrent layers.

## What it does
`poise.nn.swap_recurrent` exchanges LSTM, GRU and RNN layers for their layer-normalised counterparts of the same sizes
and weights.

## When it helps
Against a gradient through time that explodes or vanishes (`hidden_state_gain`).

## What it costs
Time: the counterparts are loops in Python, not fused kernels.

## Making it permanent
Call it once, after the model is made and before the optimizer is.

## References
- Ba, Kiros and Hinton, *Layer normalization*, 2016, arXiv:1607.06450
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="swap_recurrent",
    title="Normalise recurrent layers",
    doc=__doc__,
    kind="surgery",
    code=(
        "from poise.nn import swap_recurrent\n"
        "\n"
        "print(swap_recurrent(model).report())  # LSTM, GRU and RNN become their layer-normalised counterparts\n"
    ),
)
