"""Average over fewer updates.

## What it does
The decay of the served average is lowered, so that it remembers at most a third of the updates on a task.

## When it helps
Where the served average is behind the trained weights on new data.

## What it costs
Less smoothing: short drops on old data show a little more.

## Making it permanent
Choose the decay from the number of updates, and let the average check it.

## References
- Soutif-Cormerais et al., *Improving online continual learning performance and stability with temporal ensembles*,
  CoLLAs 2023, arXiv:2306.16817
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="shorter_average",
    title="Average over fewer updates",
    doc=__doc__,
    kind="code",
    code=("ema = EMA(model, decay=1 - 3 / updates)\nema.check_horizon(updates)\n"),
)
