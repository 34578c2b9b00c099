"""The optimizer's state was lost on resuming.

## What it is
Weights were loaded from a checkpoint but the optimizer started empty: momentum, second moments and step count of the
earlier run are gone.

## Why it hurts
Adam's first steps after an empty start have full size in every coordinate (each is divided by its own single gradient),
at a learning rate meant for moments averaged over many steps. The loss jumps, sometimes permanently; or the run
silently repeats its warm-up.

## How it is detected
Before an optimizer's first step its state is empty, `load_state_dict` has filled at least half of its weights, no
optimizer state was loaded, and the learning rate is not being warmed up again (less than 1.5 times higher three steps
later). It is a fact where a file that `torch.load` read held an optimizer's state. Without such a file, training must
have progressed in an earlier optimizer of this script whose weights had the same shapes, the first losses must go on
where it stopped (at most twice as high), and the loss must rise by half within 20 steps. Weights that are copied
between modules (target networks, momentum encoders, averaged or pre-trained weights) are no resume.

## What cures it
Load the optimizer's state too, or warm up again.

```python
model.load_state_dict(checkpoint["model"])  # bad alone
optimizer.load_state_dict(checkpoint["optimizer"])  # good: both (and the scheduler's)
```

## References
- Kingma and Ba, *Adam: a method for stochastic optimization*, ICLR 2015, arXiv:1412.6980
- Ma and Yarats, *On the adequacy of untuned warmup for adaptive optimization*, AAAI 2021, arXiv:1910.04209
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import EXACT, confidence, number, value_at
from poise.doctor.events import breakdowns, find_events, following
from poise.report.finding import Evidence, Finding, Severity
from poise.store import Event, Record

MOST = 0.5
REWARMED = 1.5
CONTINUES = 2.0
RISE = 1.5


def find(record: Record) -> list[Finding]:
    """Find an optimizer that starts empty below weights that were trained before."""
    for first in record.events("first_step"):
        empty = first.payload.get("state_empty") and first.payload.get("stateful", True)
        if empty and _run_step(first) <= record.last_step and _weights_loaded(record, first):
            return _judge(record, first)
    return []


def _run_step(first: Event) -> int:
    # A second optimizer begins at its own step 0 when the run is further on; loads are recorded in the run's steps.
    return int(first.payload.get("run_step", first.step))


def _weights_loaded(record: Record, first: Event) -> bool:
    loads = [e.payload.get("what") for e in _before(record, first, "load_state_dict")]
    return float(first.payload.get("loaded_share", 0.0)) >= MOST and "optimizer" not in loads


def _before(record: Record, first: Event, kind: str) -> list[Event]:
    return [event for event in record.events(kind) if event.step <= _run_step(first)]


def _judge(record: Record, first: Event) -> list[Finding]:
    step = first.step
    lr, loss = record["lr"], record["loss"]
    last = int(lr.steps[-1]) if len(lr.steps) else -1
    if last < step + 3 or value_at(lr, step + 3) >= REWARMED * value_at(lr, step):
        return []
    loads = _before(record, first, "torch_load")
    had_state = any(event.payload.get("has_optimizer_state") for event in loads)
    loaded = max((event.step for event in [*loads, *_before(record, first, "load_state_dict")]), default=0)
    adaptive = bool(first.payload.get("adaptive", True))
    now = loss.values[(loss.steps >= step) & (loss.steps < step + 3)]
    soon = loss.values[(loss.steps > step) & (loss.steps <= step + 20)]
    known = len(now) == 3 and last >= step + 20 and len(soon) > 0
    ratio = float(np.median(soon) / now[0]) if known and now[0] > 0 else 0.0
    rose = ratio >= RISE or not np.isfinite(ratio)
    if not had_state and not (adaptive and rose and _continues(first, now)):
        return []
    onset = _run_step(first)
    event = following(breakdowns(find_events(record)), onset, within=50)
    evidence = [Evidence("lr", value_at(lr, step), None, None, step)]
    consequence = ""
    if rose:
        evidence.append(Evidence("loss", float(np.median(soon)), RISE * float(now[0]), float(now[0]), step + 20))
        consequence = (
            f"; the loss rose from {number(float(now[0]))} to {number(float(np.median(soon)))} within 20 steps"
        )
    severity: Severity = ("error" if adaptive else "info") if had_state else "warning"
    held = " although the checkpoint held its state" if had_state else ""
    return [
        CAUSE.finding(
            severity,
            EXACT if had_state else confidence(ratio, RISE),
            f"Weights were loaded, but the optimizer started empty at step {onset}{held}{consequence}.",
            onset=onset,
            detected=max(loaded, onset, step + 3 if had_state else step + 20),
            event=event.step if event else None,
            evidence=evidence,
        )
    ]


def _continues(first: Event, losses: np.ndarray) -> bool:
    """Return whether the first losses are those at which an earlier optimizer stopped."""
    before = float(first.payload.get("earlier_loss", np.nan))
    return bool(first.payload.get("earlier_steps", 0) > 0 and float(losses[0]) <= CONTINUES * before)


CAUSE = Cause(
    id="state_lost_on_resume",
    title="The optimizer's state was lost on resuming",
    find=find,
    exact=True,
    doc=__doc__,
    family="optimizer",
    leads_to=("attention_logit_growth",),
    remedies=("warmup", "lr_scale"),
)
