"""Freeze the output rows of old classes.

## What it does
The rows of old classes are put back after every step, weights and biases; weight decay and momentum cannot move them
either.

## When it helps
Where the head, not the layers below it, moves away from old classes.

## What it costs
Nothing; the old rows cannot adapt to features that change.

## Making it permanent
Remove it by the handle when the update is done.

## References
- Harun and Kanan, *Overcoming the stability gap in continual learning*, TMLR 2024, arXiv:2306.01904
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="freeze_old_rows",
    title="Freeze the output rows of old classes",
    doc=__doc__,
    kind="code",
    code=(
        "from poise.optim import freeze_rows\n"
        "\n"
        "frozen = freeze_rows(head, old_classes, optimizer)\n"
        "# ... the update ...\n"
        "frozen.remove()\n"
    ),
)
