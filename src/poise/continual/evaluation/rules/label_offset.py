"""A task scores exactly 0 right after it was trained.

## What it is
The accuracy on held-out data of a task is exactly 0 when its training ends, although it was trained for some updates.

## Why it hurts
A model that had learned nothing would still be right by chance. At exactly 0 its answers and the labels do not mean the
same: labels of the task are numbered from 0 in training and from an offset in evaluation, or the outputs of the task
    are
masked or read from another head.

## How it is detected
Exact: of all held-out samples of the task none is right after the last update of its training.

## What cures it
Number the labels of all tasks in one way, in training, in evaluation and in the head.

```python
y_test = y_test - offset  # bad where training used y
Task(x, y, x_test, y_test)  # good: one numbering
```

## References
- none
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from poise.continual.evaluation.metrics import first_end
from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule

if TYPE_CHECKING:
    from poise.continual.evaluation.history import AccuracyHistory


def find(history: AccuracyHistory) -> list[Finding]:
    """Find tasks without a single right answer after their own training."""
    if history.metric != "accuracy":
        return []
    zero = []
    for task in np.unique(history.trained[history.trained >= 0]):
        end = first_end(history.trained, int(task))
        if history.accuracy[end, task] == 0:
            zero.append((int(task), int(history.steps[end])))
    if not zero:
        return []
    names = [history.names[task] for task, _ in zero]
    words = (
        f"The accuracy of {' and '.join(names)} is exactly 0 right after training: labels and outputs do not mean the "
        "same classes."
    )
    evidence = [Evidence(f"accuracy[{history.names[task]}]", 0.0, step=step) for task, step in zero]
    return [RULE.finding("error", 0.97, words, where=names, evidence=evidence, detected=zero[0][1])]


RULE: Rule[AccuracyHistory] = Rule(
    id="label_offset",
    title="A task scores exactly 0 after its own training",
    find=find,
    doc=__doc__,
    exact=True,
    remedies=("renumber_labels",),
    family="labels",
)
