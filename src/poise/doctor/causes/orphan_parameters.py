"""Parameters that cannot learn.

## What it is
Trainable parameters that never change: they are in no optimizer, they were replaced after the optimizer was made, or
no gradient ever reaches them.

## Why it hurts
Part of the model stays as it was initialised. The run seems healthy and ends worse than it should.

## How it is detected
Facts: the parameters of the model are compared with those of all optimizers, and with those that received a gradient
in the first steps. The severity follows their fraction of the model. Replaced or forgotten parameters are an error;
where the forgotten ones are most of the model (a frozen backbone, probably on purpose), a warning. A copy of a
trained part that never gets a gradient (an average of the weights, a target network) is none of them. Without a
gradient, the first layers that run are an error: what they compute is cut from the graph (`detach()`, `.data`,
`.item()`, `.tolist()`, `no_grad()`). So is a model without any gradient. Others are a warning if they are at least a
tenth of the model, else *info*: unused extras (a pooling head, a mask token) are common.

## What cures it
```python
optimizer = Adam(model.parameters())
model.head = nn.Linear(64, 10)  # bad: the new head is in no optimizer
model.head = nn.Linear(64, 10)
optimizer = Adam(model.parameters())  # good
for p in model.backbone.parameters():
    p.requires_grad_(False)  # good: frozen on purpose, explicitly
```

## References
- PyTorch documentation, *torch.optim: constructing it* ("move a model before constructing optimizers for it")
"""

from __future__ import annotations

import math

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import EXACT, listing, number, parameter_shapes
from poise.report.finding import Evidence, Finding, Severity
from poise.store import Event, Record

LARGE_PART, MOST, ALL = 0.1, 0.5, 0.999
_KINDS = (
    (
        "cut_off",
        "run first and never received a gradient: what they compute is cut from the graph. Look for detach(), .data, "
        ".item(), .tolist(), numpy() or no_grad() behind them",
    ),
    ("replaced", "were replaced after the optimizer was made, so that it updates the old ones"),
    ("unoptimized", "are trainable but in no optimizer"),
    ("no_gradient", "never received a gradient"),
)


def find(record: Record) -> list[Finding]:
    """Find trainable parameters that cannot learn; one finding per reason."""
    found: dict[str, Finding] = {}
    for event in record.events("orphans"):
        for kind, what in _KINDS:
            cut = event.payload.get("cut_off") or ()
            names = tuple(event.payload.get(kind) or ())
            if kind == "no_gradient" and _fraction(record, names) < ALL:
                names = tuple(name for name in names if name not in cut)
            if names and kind not in found:
                found[kind] = _finding(record, event, kind, what, names)
    return list(found.values())


def _finding(record: Record, event: Event, kind: str, what: str, names: tuple[str, ...]) -> Finding:
    fraction = _fraction(record, names)
    return CAUSE.finding(
        _severity(kind, fraction),
        EXACT,
        f"{len(names)} parameter tensor(s) ({listing(names)}; {number(100 * fraction)} % of the model) {what}.",
        where=names,
        detected=event.step,
        evidence=[Evidence(f"{kind}_fraction", fraction, None, 0.0, event.step)],
    )


def _severity(kind: str, fraction: float) -> Severity:
    if kind == "no_gradient":
        return "error" if fraction >= ALL else "warning" if fraction >= LARGE_PART else "info"
    if kind == "cut_off":
        return "error"
    return "error" if kind == "replaced" or fraction <= MOST else "warning"


def _fraction(record: Record, names: tuple[str, ...]) -> float:
    shapes = parameter_shapes(record)
    total = sum(math.prod(shape) for shape in shapes.values())
    return sum(math.prod(shapes[name]) for name in names if name in shapes) / total if total else 0.0


CAUSE = Cause(
    id="orphan_parameters",
    title="Parameters that cannot learn",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
    leads_to=("label_problem",),
)
