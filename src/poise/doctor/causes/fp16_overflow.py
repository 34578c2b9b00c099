"""Half precision overflows.

## What it is
A number exceeded 65504, the largest of half precision.

## Why it hurts
It becomes infinity, and the next subtraction makes NaN of it. With a gradient scaler every such step is skipped: the
scale is halved until nothing overflows, and gradients underflow instead.

## How it is detected
With a gradient scaler: three skipped steps in a row after the first step that was not skipped (skips at the very start,
where the scaler still searches for its scale, are normal), or a scale below 1. Without: weights are float16, and an
activation passes 30,000 in magnitude or a module makes infinities of inputs above 100.

## What cures it
bfloat16 or float32 for that layer, inputs of unit scale, a lower learning rate.

```python
model.half()  # bad
with torch.autocast("cuda", dtype=torch.bfloat16):
    ...  # good: range of float32
```

## References
- Micikevicius et al., *Mixed precision training*, ICLR 2018, arXiv:1710.03740
- Zhang et al., *OPT: open pre-trained Transformer language models* (and its logbook), 2022, arXiv:2205.01068
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import (
    EXACT,
    confidence,
    first_crossing,
    first_run,
    listing,
    number,
    parameter_types,
    value_at,
)
from poise.doctor.events import find_events, following
from poise.report.finding import Evidence, Finding
from poise.store import Record

LARGE, LIMIT = 3e4, 65504.0
LARGE_INPUT = 100.0


def find(record: Record) -> list[Finding]:
    """Find overflow of half precision: by a scaler that keeps skipping, or by activations near the limit."""
    found = [f for f in (_skips(record), _low_scale(record), _activations(record), _infinite(record)) if f is not None]
    return [min(found, key=lambda f: f.detected_step or 0)] if found else []


def _skips(record: Record) -> Finding | None:
    skipped = record["amp_skipped"]
    flags = np.nan_to_num(skipped.values) > 0
    went_well = np.maximum.accumulate(~flags) if len(flags) else flags
    end = first_run(flags & went_well, 3)
    if end is None:
        return None
    onset, step = int(skipped.steps[end - 2]), int(skipped.steps[end])
    scale = value_at(record["amp_scale"], step)
    return _finding(
        record,
        EXACT,
        f"The gradient scaler skipped three steps in a row from step {onset} (scale {number(scale)})",
        onset,
        step,
        Evidence("amp_skipped", 3.0, 3.0, 0.0, step),
    )


def _low_scale(record: Record) -> Finding | None:
    scale = record["amp_scale"]
    low = np.flatnonzero(np.asarray(scale.values) < 1)
    if not len(low):
        return None
    step, value = int(scale.steps[low[0]]), float(scale.values[low[0]])
    return _finding(
        record,
        EXACT,
        f"The gradient scale fell to {number(value)} by step {step}: gradients overflow at every scale",
        step,
        step,
        Evidence("amp_scale", value, 1.0, None, step),
    )


def _activations(record: Record) -> Finding | None:
    if not _is_half(record):
        return None
    layers = record.by_layer("act_absmax")
    hit = first_crossing(layers, lambda s: np.asarray(s.values) > LARGE)  # NaN may come from anywhere
    if hit is None:
        return None
    value = value_at(layers[hit.where[0]], hit.step)
    reached = f"Activations of {listing(hit.where)} reached {number(value)} at step {hit.step}"
    text = f"{reached}; half precision ends at {LIMIT:.0f}"
    evidence = Evidence(f"act_absmax[{hit.where[0]}]", value, LARGE, None, hit.step)
    return _finding(record, confidence(value, LARGE), text, hit.step, hit.step, evidence, hit.where)


def _infinite(record: Record) -> Finding | None:
    events = [e for e in record.events("nonfinite_forward") if _largest_input(e.payload) > LARGE_INPUT]
    if not events or not _is_half(record):
        return None
    step, module, largest = (
        events[0].step,
        str(events[0].payload.get("module") or ""),
        _largest_input(events[0].payload),
    )
    text = f"{module or 'The model'} overflowed half precision at step {step} on inputs of up to {number(largest)}"
    evidence = Evidence(f"input_absmax[{module}]", largest, LARGE_INPUT, None, step)
    return _finding(record, EXACT, text, step, step, evidence, (module,) if module else ())


def _largest_input(payload: dict) -> float:
    return max(abs(float(payload.get(end) or 0.0)) for end in ("input_min", "input_max"))


def _is_half(record: Record) -> bool:
    return "amp_scale" in record or any(
        "float16" in t and "bfloat16" not in t for t in parameter_types(record).values()
    )


def _finding(
    record: Record,
    probability: float,
    text: str,
    onset: int,
    step: int,
    evidence: Evidence,
    where: tuple[str, ...] = (),
) -> Finding:
    event = following(find_events(record), onset)
    return CAUSE.finding(
        "warning",
        probability,
        f"{text}.",
        where=where,
        onset=onset,
        detected=step,
        event=event,
        severity_with_event="error",
        evidence=[evidence],
    )


CAUSE = Cause(
    id="fp16_overflow",
    title="Half precision overflows",
    find=find,
    exact=True,
    doc=__doc__,
    family="number formats",
    leads_to=("backward_nonfinite",),
    remedies=("lr_scale", "clip_grad_norm"),
)
