"""A target of the CTC loss is longer than its input.

## What it is
Connectionist temporal classification gives each frame at most one symbol, and needs a blank between two equal ones. A
target with more symbols (and repetitions) than there are frames has probability zero.

## Why it hurts
The loss of such an example is infinite and makes the gradient NaN; with `zero_infinity=True` the example is left out
without a word.

## How it is detected
A fact: `target_lengths`, plus the number of equal neighbours in the target, is compared with `input_lengths`.

## What cures it
More frames (less pooling, smaller strides), or targets that are cut or left out.

```python
keep = target_lengths < input_lengths  # good: leave out what cannot be aligned
```

## References
- Graves et al., *Connectionist temporal classification: labelling unsegmented sequence data with recurrent neural
  networks*, ICML 2006
"""

from __future__ import annotations

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import at_line, first_event
from poise.doctor.causes.reading import EXACT, number
from poise.report.finding import Evidence, Finding
from poise.store import Record


def find(record: Record) -> list[Finding]:
    """Find CTC targets that no alignment fits."""
    event = first_event(record, "ctc_target_too_long")
    if event is None:
        return []
    share, frames, needed = (float(event.payload[name]) for name in ("share", "frames", "needed"))
    return [
        CAUSE.finding(
            "error",
            EXACT,
            f"ctc_loss{at_line(event)} is given targets that need more frames than there are: {number(needed)} in the "
            f"place of {number(frames)}, in {number(100 * share)} % of a batch. Their loss is infinite. Keep more "
            f"frames, or "
            "leave these examples out.",
            onset=event.step,
            detected=event.step,
            evidence=[Evidence("ctc_frames", frames, needed, None, event.step)],
        )
    ]


CAUSE = Cause(
    id="ctc_target_too_long",
    title="A CTC target is longer than its input",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
    leads_to=("label_problem",),
)
