"""The model cannot reach its targets: its last operation is bounded, and they are not.

## What it is
The output of a regression is a ReLU, a sigmoid, a tanh or a clamp, and part of the targets lie outside of what that can
give: negative targets behind a ReLU, standardised targets behind a sigmoid.

## Why it hurts
For these targets the best that the model can do is its bound, where the gradient is zero: outputs are pressed against
the bound, and units die there.

## How it is detected
A fact: the graph names the operation that made the prediction, and at least one in a hundred of the targets lies
outside its range.

## What cures it
```python
model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1), nn.ReLU())  # bad for targets below 0
model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1))  # good
```

## References
- Goodfellow, Bengio and Courville, *Deep learning*, section 6.2.2 (output units), MIT Press 2016
"""

from __future__ import annotations

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import at_line, first_event
from poise.doctor.causes.reading import EXACT, number
from poise.report.finding import Evidence, Finding
from poise.store import Record

SOME, MANY = 0.01, 0.1


def find(record: Record) -> list[Finding]:
    """Find targets beyond the range of the model's last operation."""
    event = first_event(record, "unreachable_target")
    if event is None or float(event.payload["share"]) < SOME:
        return []
    share, low, high = (float(event.payload[name]) for name in ("share", "low", "high"))
    least, most = event.payload["want"]
    bounds = " and ".join(
        text
        for text in (
            least is not None and f"not below {number(least)}",
            most is not None and f"not above {number(most)}",
        )
        if text
    )
    return [
        CAUSE.finding(
            "error" if share >= MANY else "warning",
            EXACT,
            f"The prediction{at_line(event)} ends in a {event.payload['made_by']} and is {bounds}, but the targets "
            f"reach from {number(low)} to {number(high)}: {number(100 * share)} % of them cannot be reached. Leave "
            f"that last "
            "operation out.",
            onset=event.step,
            detected=event.step,
            evidence=[Evidence("unreachable_targets", share, SOME, None, event.step)],
        )
    ]


CAUSE = Cause(
    id="unreachable_target",
    title="The model cannot reach its targets",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
    leads_to=("label_problem",),
)
