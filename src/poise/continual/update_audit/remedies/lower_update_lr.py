"""Update with a smaller learning rate.

## What it does
All learning rates of the update are multiplied by a factor; the audit tries a third, a tenth and 0.03.

## When it helps
Against every cause of a gap: smaller steps leave replayed data the time to pull back. It is the control that every
other remedy has to beat.

## What it costs
New data are learned more slowly; the table shows what is missing at the end.

## Making it permanent
Set the learning rate that the report names.

## References
- Harun and Kanan, *Overcoming the stability gap in continual learning*, TMLR 2024, arXiv:2306.01904
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="lower_update_lr",
    title="Update with a smaller learning rate",
    doc=__doc__,
    kind="code",
    code=("optimizer = torch.optim.AdamW(model.parameters(), lr=factor * lr)  # the factor of the report\n"),
)
