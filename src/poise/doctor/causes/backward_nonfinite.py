"""The backward pass made a NaN or infinity.

## What it is
The loss is finite, but a gradient is NaN or infinite: the derivative of an operation does not exist or overflows
where its value is fine. `sqrt` and `norm` at zero, `where` around a bad branch (0 times infinity is NaN), or an
overflow on the way back.

## Why it hurts
The next step writes NaN into the weights, and every loss after it is NaN; the forward pass shows nothing unusual.

## How it is detected
A fact: at some step the loss was finite and a gradient was not, and no forward pass before had made a NaN; or the
weights were not finite when the first loss was not, so that the step before has written them. Named are
the parameters and, where it could be found, module, operation and source line. Steps that a gradient scaler skipped
do not count: it exists to meet infinite gradients and skip them.

## What cures it
Put the guard inside the operation, not around it.

```python
d = (x - y).square().sum(-1).sqrt()  # bad: infinite slope where x == y
d = ((x - y).square().sum(-1) + 1e-12).sqrt()  # good
torch.where(x > 0, x.log(), 0)  # bad: gradient of the branch not taken is NaN
torch.where(x > 0, torch.where(x > 0, x, 1).log(), 0)  # good
```

## References
- PyTorch documentation, *Gradients for non-differentiable functions*, notes on autograd mechanics
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.forward_nonfinite import broken_at
from poise.doctor.causes.reading import EXACT, in_forward_order, listing
from poise.report.finding import Evidence, Finding
from poise.store import Event, Record


def find(record: Record) -> list[Finding]:
    """Find the first gradient that is not finite although the loss is."""
    step = _first_step(record)
    written = [event for event in record.events("nonfinite_forward") if _in_weights(event)]
    if written and (step is None or written[0].step <= step):
        return [_written(written[0])]
    if step is None or broken_at(record["loss"], step):
        return []
    if any(event.step <= step and not _in_weights(event) for event in record.events("nonfinite_forward")):
        return []
    events = [event for event in record.events("nonfinite_backward") if event.step == step]
    payload = events[0].payload if events else {}
    where = list(payload.get("parameters") or _broken_parameters(record, step))
    facts = [f"operation {payload['op']}" if payload.get("op") else "", str(payload.get("source") or "")]
    place = payload.get("module") or ""
    details = ", ".join(filter(None, [f"in {place}" if place else "", *facts]))
    return [
        CAUSE.finding(
            "error",
            EXACT,
            f"At step {step} the loss was finite but gradients{' of ' + listing(where) if where else ''} were not"
            + (f" ({details})." if details else "."),
            where=where[:8],
            onset=step,
            detected=step,
            event=step,
            evidence=[Evidence("grad_norm", float("nan"), None, None, step)],
        )
    ]


def _in_weights(event: Event) -> bool:
    return event.payload.get("where") == "weights"


def _written(event: Event) -> Finding:
    """Return the finding of weights that were not finite before the first loss that was not."""
    where = list(event.payload.get("parameters") or ())
    source = "its update" if event.payload.get("update") else "its gradients or its update"
    return CAUSE.finding(
        "error",
        EXACT,
        f"The loss of step {event.step} is not finite because the weights {listing(where)} were not: the optimizer "
        f"step before has written them ({source}).",
        where=where[:8],
        onset=max(event.step - 1, 0),
        detected=event.step,
        event=event.step,
        evidence=[Evidence("loss", float("nan"), None, None, event.step)],
        remedies=() if event.payload.get("update") else None,
    )


def _first_step(record: Record) -> int | None:
    skipped = record["amp_skipped"]
    forgiven = set(skipped.steps[np.nan_to_num(skipped.values) > 0].tolist())
    norms = record["grad_norm"]
    steps = norms.steps[~np.isfinite(norms.values)].tolist()
    steps += [event.step for event in record.events("nonfinite_backward")]
    return min((int(step) for step in steps if step not in forgiven), default=None)


def _broken_parameters(record: Record, step: int) -> list[str]:
    layers = record.by_layer("grad_norm")
    broken = [name for name, series in layers.items() if broken_at(series, step)]
    # Backward runs from the end: the last parameter of the forward pass met the NaN first.
    return [name for name in reversed(in_forward_order(layers, record)) if name in broken]


CAUSE = Cause(
    id="backward_nonfinite",
    title="The backward pass made a NaN or infinity",
    find=find,
    exact=True,
    doc=__doc__,
    family="number formats",
    leads_to=("forward_nonfinite",),
    remedies=("skip_bad_batches", "clip_grad_norm", "lr_scale"),
)
