"""Serve averaged weights.

## What it does
An exponential moving average of the weights is evaluated and served, while the weights themselves are trained as
before.

## When it helps
Against drops that are short beside the update, whatever their cause.

## What it costs
A second copy of the weights, and a few per cent of the time. With a memory that is too long, the average is behind on
new data.

## Making it permanent
Update the average after every step, and serve its module. Its memory is 1 / (1 - decay) updates.

## References
- Soutif-Cormerais et al., *Improving online continual learning performance and stability with temporal ensembles*,
  CoLLAs 2023, arXiv:2306.16817
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="serve_average",
    title="Serve averaged weights",
    doc=__doc__,
    kind="code",
    code=(
        "from poise.optim import EMA\n"
        "\n"
        "ema = EMA(model, decay=decay)  # the decay of the report\n"
        "# after every optimizer.step():\n"
        "ema.update()\n"
        "# serve:\n"
        "ema.module(x)\n"
    ),
)
