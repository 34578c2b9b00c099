"""Gradients are clipped before they are unscaled.

## What it is
A `GradScaler` multiplies the loss, and with it all gradients, by a large number. `clip_grad_norm_` is called while
they are still so large.

## Why it hurts
The limit is meant for true gradients. It cuts the scaled ones to almost nothing, and the optimizer divides what is left
by the scale once more: with a scale of 65536 and a limit of 1 the step is that of a gradient of norm 1/65536.

## How it is detected
A fact: between `scaler.scale(loss)` and `scaler.step(optimizer)` gradients are clipped without `scaler.unscale_`
before.

## What cures it
```python
scaler.scale(loss).backward()
nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # bad
scaler.step(optimizer)
scaler.scale(loss).backward()
scaler.unscale_(optimizer)  # good
nn.utils.clip_grad_norm_(model.parameters(), 1.0)
scaler.step(optimizer)
```

## References
- PyTorch documentation, *Automatic mixed precision examples: gradient clipping*
- Micikevicius et al., *Mixed precision training*, ICLR 2018, arXiv:1710.03740
"""

from __future__ import annotations

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import at_line, first_event
from poise.doctor.causes.reading import EXACT, number
from poise.report.finding import Evidence, Finding
from poise.store import Record


def find(record: Record) -> list[Finding]:
    """Find gradients that are clipped while they carry the scale of a GradScaler."""
    event = first_event(record, "clip_before_unscale")
    if event is None:
        return []
    limit, scale = float(event.payload["limit"]), float(event.payload["scale"])
    return [
        CAUSE.finding(
            "error",
            EXACT,
            f"Gradients are clipped to {number(limit)}{at_line(event)} while they are {number(scale)} times too "
            f"large: the "
            f"limit is {number(limit / scale)} in truth. Call scaler.unscale_(optimizer) before.",
            onset=event.step,
            detected=event.step,
            evidence=[Evidence("amp_scale", scale, 1.0, None, event.step)],
        )
    ]


CAUSE = Cause(
    id="clip_before_unscale",
    title="Gradients are clipped before they are unscaled",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
    leads_to=("label_problem", "clip_saturated"),
)
