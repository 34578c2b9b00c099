"""A target passes gradients on.

## What it is
The target of a temporal difference (`reward + discount * next_value`), or the advantage that multiplies a
log-probability, was computed by the network that is trained, and its gradient was not cut.

## Why it hurts
The loss can be made small by moving the target instead of the prediction: values of next states are pulled towards
those of this one, and the value network is trained to make the policy loss small. The agent learns slowly or learns
something else, and nothing in the loss shows it.

## How it is detected
From the graph of the loss (facts). The target is a number without a gradient plus a discounted output of the same
parameters as the prediction, gradient included. Or a log-probability is multiplied with `return - value` where the
value has a gradient.

## What cures it
```python
target = reward + 0.99 * q(following).amax(1)  # bad
with torch.no_grad():
    target = reward + 0.99 * q(following).amax(1)  # good
loss = -(log_prob * (returns - value).detach()).mean()  # good
```

## References
- Sutton and Barto, *Reinforcement learning: an introduction*, 2nd edition 2018, sections 9.3 (semi-gradient methods)
  and 11.5
- Baird, *Residual algorithms: reinforcement learning with function approximation*, ICML 1995
"""

from __future__ import annotations

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import EXACT
from poise.report.finding import Finding
from poise.store import Record


def find(record: Record) -> list[Finding]:
    """Find targets and advantages whose gradient was not cut."""
    events = record.events("target_with_gradient")
    if not events:
        return []
    first = events[0]
    what, source = first.payload.get("what", "target"), first.payload.get("source", "")
    cut = "`.detach()` the advantage" if what == "advantage" else "compute the target under `torch.no_grad()`"
    return [
        CAUSE.finding(
            "warning",
            EXACT,
            f"The {what} of the loss at {source} has a gradient, so that the network is also trained to move its "
            f"{what}; {cut}.",
            onset=first.step,
            detected=first.step,
        )
    ]


CAUSE = Cause(
    id="target_not_detached",
    title="A target passes gradients on",
    find=find,
    exact=True,
    doc=__doc__,
    family="reinforcement learning",
    leads_to=("bootstrap_divergence",),
)
