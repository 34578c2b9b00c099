"""A batch unlike the others.

## What it is
One batch (or a few) is not like the others: corrupt files, NaN in the inputs, a wrong scale, thousands of repeated
tokens, shuffled labels.

## Why it hurts
Its gradient points nowhere useful and is often the largest of the run. At best the loss spikes; through Adam's second
moment it may end in divergence. A NaN in the inputs is in every weight after one step.

## How it is detected
NaN in the inputs is a fact. Otherwise the loss spikes (8 robust standard deviations, see the events) and a fingerprint
of that batch (mean, standard deviation, largest magnitude, token entropy, repeats) lies outside the range of the
batches before it. The confidence is higher if the loss is back within three steps: then the batch was unusual, and the
weights are undamaged.

## What cures it
Skip or clean such batches; clip gradients so that one batch cannot do much harm.

```python
x = torch.tensor(rows)  # bad: whatever the file holds
assert torch.isfinite(x).all(), path  # good: fail early
```

## References
- Chowdhery et al., *PaLM: scaling language modeling with Pathways*, JMLR 2023, arXiv:2204.02311 (spikes come from
  pairs of batch and state)
- OLMo team, *2 OLMo 2 furious*, 2025, arXiv:2501.00656 (repeated n-grams)
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.forward_nonfinite import INPUT
from poise.doctor.causes.reading import EXACT, evidence_at, listing, number, value_at
from poise.doctor.events import LossEvent, find_events, stayed_up
from poise.report.finding import Evidence, Finding
from poise.store import Record

FINGERPRINTS = ("input_mean", "input_std", "input_absmax", "token_entropy", "token_repeats", "label_entropy")


def find(record: Record) -> list[Finding]:
    """Find the first batch with NaN in its inputs, and the first that made the loss spike on its own."""
    return _nonfinite_input(record) or _odd_batch(record)


def _nonfinite_input(record: Record) -> list[Finding]:
    counts = record["input_nonfinite"]
    hits = [(int(s), float(v)) for s, v in zip(counts.steps, counts.values, strict=True) if v > 0]
    hits += [(e.step, 1.0) for e in record.events("nonfinite_forward") if e.payload.get("op") == INPUT]
    if not hits:
        return []
    step, count = min(hits)
    event = next((e for e in find_events(record) if e.kind == "divergence" and e.step >= step), None)
    return [
        CAUSE.finding(
            "error",
            EXACT,
            f"The batch of step {step} held NaN or infinite inputs.",
            onset=step,
            detected=step,
            event=event,
            evidence=[Evidence("input_nonfinite", count, 0.0, 0.0, step)],
        )
    ]


def _odd_batch(record: Record) -> list[Finding]:
    known = [f for event in find_events(record) if event.kind == "spike" and (f := _judge(record, event))]
    return [min(known, key=lambda f: (f.detected_step or 0, f.onset_step or 0))] if known else []


def _judge(record: Record, event: LossEvent) -> Finding | None:
    if _is_remainder(record, event.step):
        return None
    outside = [name for name in FINGERPRINTS if _outside(record, name, event.step)]
    if not outside:
        return None
    stays = stayed_up(record, event)
    recovered = stays is not None and not stays[0]
    harmed = stays is not None and stays[0]
    was = "was" if len(outside) == 1 else "were"
    evidence = [Evidence("loss", event.value, None, event.level, event.step)]
    for name in outside:
        evidence += evidence_at(record, name, event.step)
    return CAUSE.finding(
        "error" if harmed else "warning",
        0.95 if recovered else 0.85,
        f"The batch of step {event.step} was unlike the others: its loss was {number(event.value)} after "
        f"{number(event.level)}, and {listing(outside)} {was} outside the range of all batches before"
        + ("; the loss has not come back." if harmed else "."),
        onset=event.step,
        detected=event.detected_step,
        event=event.step,
        evidence=evidence,
    )


def _is_remainder(record: Record, step: int) -> bool:
    """Return whether the batch is much smaller than usual: the last one of an epoch is naturally noisier."""
    size = record["batch_size"]
    before = size.values[size.steps < step]
    return len(before) > 0 and value_at(size, step) < 0.5 * float(np.median(before))


def _outside(record: Record, name: str, step: int) -> bool:
    series = record[name]
    at = np.flatnonzero(series.steps == step)
    before = np.asarray(series.values)[series.steps < step]
    before = before[np.isfinite(before)]
    if not len(at) or len(before) < 10:
        return False
    middle = float(np.median(before))
    spread = 1.4826 * float(np.median(np.abs(before - middle)))
    reach = max(8 * spread, 1.5 * float(np.abs(before - middle).max()), 0.2 * abs(middle))
    return not abs(float(series.values[at[-1]]) - middle) <= reach


CAUSE = Cause(
    id="bad_batch",
    title="A batch unlike the others",
    find=find,
    exact=False,
    doc=__doc__,
    family="data",
    leads_to=("stale_second_moment",),
    remedies=("skip_bad_batches", "clip_grad_norm", "clip_update_rms"),
)
