"""`requires_grad` is set in vain.

## What it is
A script means to freeze parameters, or to release them, and they do not follow: `requires_grad` was set on a module,
which has no such attribute, or was misspelt; or parameters were frozen whose gradients are zero instead of `None`, so
that the optimizer goes on to decay them.

## Why it hurts
Python lets a script set any attribute, so nothing is reported. A pre-trained part that should keep its weights is
trained, or a part that should learn does not. A frozen parameter with a gradient of zeros shrinks by weight decay in
every step until nothing of it is left.

## How it is detected
Facts: a module or parameter has an attribute `requires_grad`, `require_grad` or the like that torch does not read, and
every parameter concerned is the opposite of what it says (*info* where a part that is meant to be frozen is in no
optimizer anyway). Or: parameters that were trained and then frozen, with a gradient of zeros, have changed in two
sampled steps in a row (without weight decay it is *info*: momentum runs out).

## What cures it
```python
model.backbone.requires_grad = False  # bad: an attribute that torch does not read
model.backbone.requires_grad_(False)  # good
optimizer.zero_grad(set_to_none=False)  # bad with frozen parameters: a gradient of zeros lets weight decay go on
optimizer.zero_grad()  # good: without a gradient the optimizer leaves a parameter alone
```

## References
- PyTorch documentation, *Autograd mechanics: setting requires_grad* and *torch.optim.Optimizer.zero_grad*
"""

from __future__ import annotations

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import first_event
from poise.doctor.causes.reading import EXACT, listing, number
from poise.report.finding import Evidence, Finding
from poise.store import Event, Record


def find(record: Record) -> list[Finding]:
    """Find parameters that are trained, or decayed, although the script has frozen them, and the reverse."""
    attribute, moves = first_event(record, "requires_grad_in_vain"), first_event(record, "frozen_moves")
    found = [] if attribute is None else [_attribute(attribute)]
    return found if moves is None else [*found, _moves(moves)]


def _attribute(event: Event) -> Finding:
    facts = event.payload
    names, value = tuple(facts["names"]), bool(facts["value"])
    of_module = facts["owner"] == "module"
    what = "a module" if of_module else "a parameter"
    optimized = bool(facts["optimized"])
    effect = "stay frozen" if value else "are trained all the same" if optimized else "get gradients all the same"
    cure = f"Call requires_grad_({value}) of the module" if of_module else f"Write requires_grad = {value}"
    return CAUSE.finding(
        "error" if value or optimized else "info",
        EXACT,
        f"`{facts['attribute']} = {value}` of {listing(names)} is an attribute of {what} that torch does not read: "
        f"{facts['tensors']} parameter tensor(s) ({number(float(facts['numbers']))} numbers) {effect}. {cure}.",
        where=names,
        detected=event.step,
        evidence=[Evidence("parameters_that_do_not_follow", float(facts["tensors"]), None, 0.0, event.step)],
    )


def _moves(event: Event) -> Finding:
    names, decay = tuple(event.payload["names"]), float(event.payload["weight_decay"])
    why = f"weight decay of {number(decay)}" if decay else "its momentum"
    return CAUSE.finding(
        "warning" if decay else "info",
        EXACT,
        f"{event.payload['total']} parameter tensor(s) ({listing(names)}) were frozen and change with every step: "
        f"their gradients are zero, not None, and the optimizer goes on with {why}. Call zero_grad() with "
        "set_to_none=True after freezing, or take them out of the optimizer.",
        where=names,
        onset=event.step,
        detected=event.step,
        evidence=[Evidence("weight_decay", decay, 0.0, None, event.step)],
    )


CAUSE = Cause(
    id="requires_grad_in_vain",
    title="requires_grad is set in vain",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
)
