"""Sort the table before training.

## What it does
The rows are brought into an order that depends on their content alone.

## When it helps
Against lists that change with the order of the rows (`row_order_sensitivity`).

## What it costs
The time of one sort.

## Making it permanent
Sort where the table is read. Equal times need a further column that orders them.

## References
- Oh et al., *Rank list sensitivity of recommender systems to interaction perturbations*, CIKM 2022, arXiv:2201.12686
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="sorted_rows",
    title="Sort the table before training",
    doc=__doc__,
    kind="code",
    code=('events = events.sort_values(["time", "user", "item"], kind="stable")\n'),
)
