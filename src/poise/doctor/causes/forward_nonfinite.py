"""The forward pass made a NaN or infinity.

## What it is
A module, or the loss, turned finite inputs into NaN or infinity: `log(0)`, a division by zero, the root of a negative
number, a softmax whose row is masked completely, or an overflow.

## Why it hurts
A NaN reaches every weight within one step and never leaves. The place where the loss turned NaN is rarely the place
where the NaN was made.

## How it is detected
A fact, not a statistic: the first module in execution order with finite inputs and an output that is not finite, named
with operation and source line. It is an error where the loss or the gradients of that step were not finite (or the step
never came to a loss), else *info*: infinities that a later operation masks are legal. If the inputs were already huge
(above 1e6), the cause is probably an explosion elsewhere, and the probability is lower.

## What cures it
Guard the operation.

```python
loss = -(y * p.log()).sum()  # bad: p may be 0
loss = F.cross_entropy(logits, target)  # good: computed from logits, stable
loss = -(y * p.clamp_min(1e-12).log()).sum()  # good enough
```

## References
- Goldberg, *What every computer scientist should know about floating-point arithmetic*, ACM Computing Surveys 1991
- Blanchard, Higham and Higham, *Accurately computing the log-sum-exp and softmax functions*, IMA J. Numer. Anal. 2021
"""

from __future__ import annotations

import math

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import EXACT, number
from poise.report.finding import Evidence, Finding
from poise.store import Event, Record, Series

HUGE = 1e6
INPUT = "the input batch"  # what the tap records where the inputs of the model were not finite


def find(record: Record) -> list[Finding]:
    """Find the first module that made a NaN or infinity of finite inputs."""
    events = record.events("nonfinite_forward")
    if not events or events[0].payload.get("op") == INPUT:  # then the batch is the cause
        return []
    if events[0].payload.get("where") == "weights":  # they were so before: see backward_nonfinite
        return []
    first = events[0]
    low, high = _range(first)
    exploded = max(abs(low), abs(high)) > HUGE
    harmful = any(broken_at(record[name], first.step) for name in ("loss", "grad_norm")) or not _has(
        record["loss"], first.step
    )
    module = str(first.payload.get("module") or "")
    return [
        CAUSE.finding(
            "error" if harmful else "info",
            0.6 if exploded else EXACT,
            f"{_place(first, module)} turned finite inputs{_span(low, high)} into NaN or infinity "
            f"at step {first.step}" + ("; neither loss nor gradients were harmed." if not harmful else "."),
            where=[module] if module else [],
            onset=first.step,
            detected=first.step,
            event=first.step if harmful else None,
            evidence=[Evidence(f"input_absmax[{module or 'loss'}]", max(abs(low), abs(high)), None, None, first.step)],
        )
    ]


def broken_at(series: Series, step: int) -> bool:
    """Return whether the value at exactly this step is there and not finite."""
    return any(not math.isfinite(v) for v in series.values[series.steps == step])


def _has(series: Series, step: int) -> bool:
    return bool((series.steps == step).any())


def _range(event: Event) -> tuple[float, float]:
    low, high = event.payload.get("input_min"), event.payload.get("input_max")
    return (float("nan") if low is None else float(low)), (float("nan") if high is None else float(high))


def _span(low: float, high: float) -> str:
    return f" ({number(low)} to {number(high)})" if math.isfinite(low) and math.isfinite(high) else ""


def _place(event: Event, module: str) -> str:
    op, source = event.payload.get("op"), event.payload.get("source")
    name = module or ("The loss" if event.payload.get("where") == "loss" else "The model")
    statement = event.payload.get("statement")
    line = f"{source}: `{statement}`" if statement else str(source or "")
    details = ", ".join(filter(None, [f"operation {op}" if op else "", line]))
    return f"{name} ({details})" if details else name


CAUSE = Cause(
    id="forward_nonfinite",
    title="The forward pass made a NaN or infinity",
    find=find,
    exact=True,
    doc=__doc__,
    family="number formats",
    leads_to=("dead_units",),
    remedies=("skip_bad_batches", "clip_grad_norm", "lr_scale"),
)
