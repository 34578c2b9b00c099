"""Hidden units are saturated.

## What it is
Most units of a tanh or sigmoid layer sit at the ends of their range, for most inputs. The slope there is near 0.

## Why it hurts
A saturated unit passes next to no gradient, and has become a switch: what it does to its input can hardly be changed
any more. The loss falls slowly, to a worse value, or not at all.

## How it is detected
`saturated[layer]`, the fraction of outputs beyond ±0.97 of a tanh (outside [0.03, 0.97] of a sigmoid), exceeds 0.5 in
three consecutive samples. Measured are `nn.Tanh`, `nn.Sigmoid`, `nn.Hardtanh` and `nn.Hardsigmoid` whose outputs a
weight of the same model uses; outputs of the model near 0 and 1 may be right. It is a warning where two or more layers
are saturated from the first three samples on in weights that were not loaded (a usual initialisation saturates under 5
%), and an error where the loss then stalls or diverges. Where it comes later it is *info*: units that saturate while
the loss falls are certain of what they have learned; an error where the loss stalls or diverges although updates are
small (above 2 % the learning rate is the cause).

## What cures it
Initialise with a variance that fits the width (Glorot), standardise the inputs, normalise before the nonlinearity, or
use one that does not saturate (ReLU, GELU).

```python
nn.init.normal_(layer.weight)  # bad: the inputs of the next layer have a standard deviation of sqrt(width)
nn.init.xavier_normal_(layer.weight, gain=5 / 3)  # good for tanh
```

## References
- Glorot and Bengio, *Understanding the difficulty of training deep feedforward neural networks*, AISTATS 2010
- LeCun et al., *Efficient backprop*, 1998
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import (
    confidence,
    first_crossing,
    listing,
    number,
    typical,
    update_ratio,
    value_at,
)
from poise.doctor.events import find_events, following
from poise.report.finding import Evidence, Finding
from poise.store import Record

THRESHOLD, HEALTHY_UPDATE, SAMPLES = 0.5, 0.02, 3


def find(record: Record) -> list[Finding]:
    """Find hidden layers most of whose units are at an end of their range."""
    layers = record.by_layer("saturated")
    hit = first_crossing(layers, lambda series: np.asarray(series.values) > THRESHOLD, length=SAMPLES)
    if hit is None:
        return []
    layer, steps = hit.where[0], layers[hit.where[0]].steps
    fraction = value_at(layers[layer], hit.step)
    onset = int(steps[steps <= hit.step][-SAMPLES])
    from_the_start = onset == steps[0] and len(hit.where) >= 2 and not _is_loaded(record)
    events = [e for e in find_events(record) if e.kind != "spike"]
    is_rate = typical(update_ratio(record), hit.step) > HEALTHY_UPDATE
    return [
        CAUSE.finding(
            "warning" if from_the_start else "info",
            confidence(1 - THRESHOLD, max(1 - fraction, 1e-3)),
            f"{number(100 * fraction)} % of the outputs of {listing(hit.where)} are at an end of their range"
            f"{' from the start' if from_the_start else f' since step {onset}'}, where the slope is near 0.",
            where=hit.where,
            onset=onset,
            detected=hit.step,
            event=None if is_rate and not from_the_start else following(events, onset),
            severity_with_event="error",
            evidence=[Evidence(f"saturated[{layer}]", fraction, THRESHOLD, None, hit.step)],
        )
    ]


def _is_loaded(record: Record) -> bool:
    return any(event.payload.get("loaded_share", 0.0) > 0 for event in record.events("first_step"))


CAUSE = Cause(
    id="saturation",
    title="Hidden units are saturated",
    find=find,
    exact=False,
    doc=__doc__,
    family="activations and logits",
    leads_to=("exploding_gradients",),
)
