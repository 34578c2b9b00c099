"""The network learns each new task less well than those before.

## What it is
The score of a task at the end of its own training falls from task to task.

## Why it hurts
Weights, their singular values and the fraction of dead units have left the range in which a network trains well. It is
not forgetting: new data are not learned in the first place, and more updates hardly help.

## How it is detected
At least six tasks. The mean score at the end of a task's own training over the last third of the tasks is lower than
over the first third by at least 0.1, and the rank correlation of score and position is below -0.5. Tasks that become
harder by themselves look the same: train the last one from a fresh network to tell them apart.

## What cures it
A penalty that keeps singular values near one, or a pull to the initial weights, from the first task on.

```python
loss = F.cross_entropy(model(x), y)  # bad over many tasks
loss = F.cross_entropy(model(x), y) + 1e-2 * penalty()  # good
```

## References
- Lewandowski et al., *Learning continually by spectral regularization*, ICLR 2025, arXiv:2406.06811
- Dohare et al., *Loss of plasticity in deep continual learning*, Nature 2024
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from poise.continual.evaluation.metrics import first_end
from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.continual.evaluation.history import AccuracyHistory

_TASKS, _FALL, _CORRELATION = 6, 0.1, -0.5


def find(history: AccuracyHistory) -> list[Finding]:
    """Find scores after a task's own training that fall from task to task."""
    order = list(dict.fromkeys(history.trained[history.trained >= 0].tolist()))
    if len(order) < _TASKS:
        return []
    scores = np.array([history.accuracy[first_end(history.trained, task), task] for task in order])
    third = len(scores) // 3
    first, last = float(scores[:third].mean()), float(scores[-third:].mean())
    ranks = scores.argsort().argsort()
    correlation = float(np.corrcoef(ranks, np.arange(len(scores)))[0, 1])
    if not (first - last >= _FALL and correlation < _CORRELATION):
        return []
    words = (
        f"Right after their own training the first {third} tasks are at {number(first, 3)} and the last {third} at "
        f"{number(last, 3)} ({history.metric})."
    )
    evidence = [
        Evidence("score after training", last, first - _FALL, first),
        Evidence("rank correlation", correlation, _CORRELATION),
    ]
    return [RULE.finding("warning", 0.75, words, evidence=evidence)]


RULE: Rule[AccuracyHistory] = Rule(
    id="loss_of_plasticity",
    title="Later tasks are learned less well",
    find=find,
    doc=__doc__,
    exact=False,
    remedies=("spectral_penalty",),
    family="plasticity",
)
