"""A batch of repeated tokens.

## What it is
A batch of text holds the same few tokens over and over: runs of one symbol, padding taken for text, a broken document.

## Why it hurts
Each repetition has the same gradient. The sum is many times larger than that of ordinary text and points in one
direction, the second moment of Adam is not used to it, and the weights of the tokens concerned are thrown.

## How it is detected
The loss spikes, or diverges, within 8 steps of a batch in which the entropy of tokens is below a quarter of its median
over the batches before, or in which the fraction of tokens equal to the one before is above a half and more than
doubled.

## What cures it
Leave out documents in which an n-gram of at most 13 tokens is repeated more than 32 times, or mask the loss there.

```python
loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())  # bad: repetitions count as often as they occur
targets = targets.masked_fill(targets == inputs, -100)  # good for runs of one token: they count as one
```

## References
- OLMo team, *2 OLMo 2 furious*, 2025, arXiv:2501.00656 (repeated n-grams)
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import confidence, number
from poise.doctor.events import LossEvent, breakdowns, find_events
from poise.report.finding import Evidence, Finding
from poise.store import Record

FEW, MANY, WITHIN, BEFORE = 0.25, 0.5, 8, 10


def find(record: Record) -> list[Finding]:
    """Find the first breakdown of the loss that follows a batch of repeated tokens."""
    for event in breakdowns(find_events(record)):
        found = _few_tokens(record, event) or _runs(record, event)
        if found is not None:
            step, evidence, said, sure = found
            return [
                CAUSE.finding(
                    "warning",
                    sure,
                    f"The batch of step {step} repeats itself: {said}.",
                    onset=step,
                    detected=event.detected_step,
                    event=event,
                    evidence=[evidence, Evidence("loss", event.value, None, event.level, event.step)],
                )
            ]
    return []


def _few_tokens(record: Record, event: LossEvent) -> tuple[int, Evidence, str, float] | None:
    for step, value, usual in _near(record, "token_entropy", event):
        if value < FEW * usual:
            evidence = Evidence("token_entropy", value, FEW * usual, usual, step)
            said = f"its tokens have an entropy of {number(value)}, those of the batches before {number(usual)}"
            return step, evidence, said, confidence(usual, value / FEW + 1e-9)
    return None


def _runs(record: Record, event: LossEvent) -> tuple[int, Evidence, str, float] | None:
    for step, value, usual in _near(record, "token_repeats", event):
        if value > max(MANY, 2 * usual):
            evidence = Evidence("token_repeats", value, MANY, usual, step)
            said = f"{number(100 * value)} % of its tokens equal the one before ({number(100 * usual)} % usually)"
            return step, evidence, said, confidence(value, MANY)
    return None


def _near(record: Record, signal: str, event: LossEvent) -> list[tuple[int, float, float]]:
    """Return step, value and earlier median of the samples just before an event."""
    series = record[signal]
    values = np.asarray(series.values, dtype=float)
    near = np.flatnonzero((series.steps >= event.step - WITHIN) & (series.steps <= event.step))
    before = values[series.steps < event.step - WITHIN]
    before = before[np.isfinite(before)]
    if len(before) < BEFORE:
        return []
    usual = float(np.median(before))
    return [(int(series.steps[i]), float(values[i]), usual) for i in near]


CAUSE = Cause(
    id="repeated_tokens",
    title="A batch of repeated tokens",
    find=find,
    exact=False,
    doc=__doc__,
    family="data",
    leads_to=("bad_batch",),
    remedies=("skip_bad_batches", "clip_grad_norm", "clip_update_rms"),
)
