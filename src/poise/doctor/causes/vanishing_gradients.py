"""Gradients vanish on their way back.

## What it is
The gradient shrinks from layer to layer on its way back: the first layers get almost none. Saturated sigmoids, weights
that are too small, or many layers without residual connections or normalisation.

## Why it hurts
The first layers stay as they were initialised; what they destroy of the input, later layers cannot restore. The loss
stalls.

## How it is detected
Over weight matrices in the order of the forward pass (at least four), in three consecutive samples: the median
gradient norm of the first third is less than a thousandth of that of the last third (a hundredth where a tanh or
sigmoid layer is saturated in more than half of its units), and the norms rise steadily with depth (rank correlation
above 0.7). It is an error once the loss has stalled, and *info* where the relative updates of the first
layer are at least a tenth of those of the last: adaptive optimizers do not see how small a gradient is.

## What cures it
Residual connections, normalisation, ReLU-like activations, an initialisation that keeps variance.

```python
[nn.Linear(64, 64), nn.Sigmoid()] * 20  # bad: each layer keeps at most a quarter of the gradient
x = x + block(norm(x))  # good: the gradient has a path around every block
```

## References
- Hochreiter, *Untersuchungen zu dynamischen neuronalen Netzen*, diploma thesis, 1991
- Glorot and Bengio, *Understanding the difficulty of training deep feedforward neural networks*, AISTATS 2010
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.depth import DepthProfile, depth_profiles
from poise.doctor.causes.reading import align, confidence, number, value_at
from poise.doctor.events import find_events, following
from poise.report.finding import Evidence, Finding
from poise.store import Record

THRESHOLD, SATURATED_THRESHOLD, STEADY = 1e-3, 1e-2, 0.7
MOVES = 0.1


def find(record: Record) -> list[Finding]:
    """Find gradients that are lost on their way to the first layers."""
    found = [finding for profile in depth_profiles(record) for finding in _over(record, profile)]
    return sorted(found, key=lambda finding: finding.detected_step or 0)[:1]


def _over(record: Record, profile: DepthProfile) -> list[Finding]:
    threshold = np.where(_saturated(record, profile), SATURATED_THRESHOLD, THRESHOLD)
    index = profile.first((profile.ratio < threshold) & (profile.slope > STEADY))
    if index is None:
        return []
    onset, detected = int(profile.steps[index - 2]), int(profile.steps[index])
    ratio, limit = float(profile.ratio[index]), float(threshold[index])
    stall = following([e for e in find_events(record) if e.kind == "stall"], onset)
    first, last = profile.names[0], profile.names[-1]
    return [
        CAUSE.finding(
            "info" if _moves_as_well(record, first, last, detected) else "warning",
            confidence(limit, max(ratio, 1e-30)),
            f"The gradient vanishes on its way back: the first layers ({first}) get {number(ratio)} of what the last "
            f"({last}) get.",
            where=[first],
            onset=onset,
            detected=detected,
            event=stall,
            severity_with_event="error",
            evidence=[
                Evidence(f"grad_norm[{first}]", float(profile.norms[index, 0]), None, None, detected),
                Evidence(f"grad_norm[{last}]", float(profile.norms[index, -1]), None, None, detected),
                Evidence("grad_norm first/last", ratio, limit, None, detected),
            ],
        )
    ]


def _moves_as_well(record: Record, first: str, last: str, step: int) -> bool:
    ours, theirs = (value_at(record[f"update_ratio[{name}]"], step) for name in (first, last))
    return ours >= MOVES * theirs > 0


def _saturated(record: Record, profile: DepthProfile) -> np.ndarray:
    layers = [align(series, profile.steps) for series in record.by_layer("saturated").values()]
    return np.nan_to_num(np.array(layers)).max(axis=0) > 0.5 if layers else np.zeros(len(profile.steps), dtype=bool)


CAUSE = Cause(
    id="vanishing_gradients",
    title="Gradients vanish on their way back",
    find=find,
    exact=False,
    doc=__doc__,
    family="gradients",
    leads_to=("eps_dominates",),
)
