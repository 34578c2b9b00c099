"""Old tasks fell deeply and recovered before the end of the next task.

## What it is
While another task was trained, the score of an old one was far below what an evaluation at the ends of tasks shows.

## Why it hurts
A model that is used while it learns is as bad as its worst moment. The drop begins with the first updates of a task,
where nothing resists the gradient of the new data.

## How it is detected
For every old task, the lowest of its scores at the ends of later tasks is compared with its lowest score at any
evaluated update. The finding is made if that is lower by at least 0.1 in the mean over old tasks.

## What cures it
Serve averaged weights, give old data more weight, or lower the learning rate at the start of a task. `audit_update`
measures which is enough.

```python
evaluate(model)  # bad: at the ends of tasks, of the trained weights
evaluator.after_step({"trained": model, "served": ema.module})  # good
```

## References
- De Lange et al., *Continual evaluation for lifelong learning: identifying the stability gap*, ICLR 2023,
  arXiv:2205.13452
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from poise.continual.evaluation.metrics import first_end, task_minima
from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.continual.evaluation.history import AccuracyHistory

_LEAST = 0.1


def find(history: AccuracyHistory) -> list[Finding]:
    """Find drops that an evaluation at the ends of tasks does not show."""
    every, ends = (task_minima(h.accuracy, h.trained) for h in (history, history.at_task_ends()))
    hidden = {task: ends[task] - every[task] for task in ends if task in every}
    mean = float(np.mean(list(hidden.values()))) if hidden else 0.0
    if mean < _LEAST:
        return []
    worst = max(hidden, key=lambda task: hidden[task])
    row = (
        first_end(history.trained, worst)
        + 1
        + int(np.nanargmin(history.accuracy[first_end(history.trained, worst) + 1 :, worst]))
    )
    words = (
        f"Old tasks fell to {number(float(np.mean(list(every.values()))), 3)} between evaluations at the ends of "
        f"tasks, which show {number(float(np.mean(list(ends.values()))), 3)} at the lowest (means over tasks)."
    )
    evidence = [
        Evidence(
            f"score[{history.names[worst]}]", every[worst], ends[worst] - _LEAST, ends[worst], int(history.steps[row])
        )
    ]
    return [RULE.finding("warning", 0.9, words, where=[history.names[worst]], evidence=evidence)]


RULE: Rule[AccuracyHistory] = Rule(
    id="hidden_drop",
    title="Old tasks fell and came back between task ends",
    find=find,
    doc=__doc__,
    exact=False,
    remedies=("serve_average", "reweight_old_data", "lower_update_lr"),
    family="stability gap",
)
