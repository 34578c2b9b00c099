"""A checkpoint was loaded with `strict=False`, and little or nothing of it fitted.

## What it is
`load_state_dict(state, strict=False)` leaves out all names that the model does not have, without an error: a prefix
(`module.`, `_orig_mod.`, `backbone.`) is enough for nothing to be loaded at all.

## Why it hurts
Training begins at random weights, where trained ones were meant.

## How it is detected
A fact: the names that `load_state_dict` returns. Nothing loaded is an error; more than half of the given names left out
is a warning. A new head beside a loaded backbone is neither.

## What cures it
```python
model.load_state_dict(state, strict=False)  # bad: says nothing
print(model.load_state_dict(state, strict=False))  # good: see what did not fit
model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})  # good
```

## References
- PyTorch documentation, *torch.nn.Module.load_state_dict*
"""

from __future__ import annotations

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import at_line
from poise.doctor.causes.reading import EXACT, listing
from poise.report.finding import Evidence, Finding
from poise.store import Event, Record

MOST = 0.5


def find(record: Record) -> list[Finding]:
    """Find a checkpoint whose names are mostly unknown to the model."""
    for event in record.events("load_state_dict"):
        given, unexpected = int(event.payload.get("given") or 0), int(event.payload.get("unexpected_total") or 0)
        missing = int(event.payload.get("missing_total") or 0)
        # What the model did not miss was there, whatever else was in the file.
        if given and missing and unexpected > MOST * given:
            return [_finding(event, given, unexpected)]
    return []


def _finding(event: Event, given: int, unexpected: int) -> Finding:
    loaded = given - unexpected
    theirs, ours = event.payload["unexpected"][:1], event.payload["missing"][:1]
    names = f" The file has {listing(theirs)}, the model {listing(ours)}." if theirs and ours else ""
    return CAUSE.finding(
        "error" if loaded == 0 else "warning",
        EXACT,
        f"load_state_dict(strict=False){at_line(event)} loaded {loaded} of {given} tensors into "
        f"{event.payload['class']}.{names}",
        where=event.payload["missing"],
        onset=event.step,
        detected=event.step,
        evidence=[Evidence("tensors_loaded", float(loaded), float(given), None, event.step)],
    )


CAUSE = Cause(
    id="partial_load",
    title="A checkpoint was loaded in part only",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
    leads_to=("label_problem",),
)
