"""Number the labels of all tasks in one way.

## What it does
Training, evaluation and the rows of the head use the same numbers for the same classes.

## When it helps
Where a task is at exactly 0 right after its training.

## What it costs
Nothing.

## Making it permanent
Keep one table from class to row, and use it wherever labels are read.

## References
- none
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="renumber_labels",
    title="Number the labels of all tasks in one way",
    doc=__doc__,
    kind="code",
    code=(
        "row = {c: i for i, c in enumerate(classes_in_order_of_arrival)}\n"
        "y, y_test = (torch.tensor([row[int(c)] for c in labels]) for labels in (y, y_test))\n"
    ),
)
