"""A learned standard deviation runs away.

## What it is
The standard deviation of a Gaussian policy or likelihood is a parameter or an output of the network, and goes to zero
or without bound.

## Why it hurts
The gradient of a Gaussian log-likelihood grows with `1 / std**2`: near 0 one point off the mean breaks the weights, and
a policy no longer explores. Far above its start the policy is noise, and the likelihood has given up the data.

## How it is detected
`learned_std`, the geometric mean of the deviations that `Normal.log_prob` or `F.gaussian_nll_loss` is given, leaves
[1e-3, 100] times its first value for three consecutive samples. Above, it is a warning. Below, it is *info* until the
loss spikes, diverges or is not finite: data without noise make it fall, too. With a divergence it is an error.

## What cures it
A lower bound (`softplus(x) + 1e-3`, or `log_std.clamp(-5, 2)`), a smaller entropy bonus or the right sign of it, a
lower learning rate for the deviation.

```python
std = log_std.exp()  # bad: nothing bounds it
std = log_std.clamp(-5, 2).exp()  # good
```

## References
- Seitzer, Tavakoli, Antic and Martius, *On the pitfalls of heteroscedastic uncertainty estimation with probabilistic
  neural networks*, ICLR 2022, arXiv:2203.09168
- Haarnoja et al., *Soft actor-critic algorithms and applications*, 2018, arXiv:1812.05905
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import confidence, first_run, number
from poise.doctor.events import breakdowns, find_events, following
from poise.report.finding import Evidence, Finding
from poise.store import Record

LOW, HIGH, SAMPLES = 1e-3, 100.0, 3


def find(record: Record) -> list[Finding]:
    """Find a learned deviation that is far from where it began."""
    series = record["learned_std"]
    values = np.asarray(series.values, dtype=float)
    if not len(values) or not np.isfinite(values[0]) or values[0] <= 0:
        return []
    ratio = values / values[0]
    runs = [(i, low) for low in (True, False) if (i := first_run(ratio < LOW if low else ratio > HIGH, SAMPLES))]
    if not runs:
        return []
    i, low = min(runs)
    onset, detected = int(series.steps[i - SAMPLES + 1]), int(series.steps[i])
    return [
        CAUSE.finding(
            "info" if low else "warning",
            confidence(LOW, float(ratio[i])) if low else confidence(float(ratio[i]), HIGH),
            f"The learned standard deviation {'fell' if low else 'rose'} from {number(float(values[0]))} to "
            f"{number(float(values[i]))} by step {detected}.",
            onset=onset,
            detected=detected,
            event=following(breakdowns(find_events(record)), onset),
            severity_with_event="error",
            evidence=[
                Evidence(
                    "learned_std",
                    float(values[i]),
                    float(values[0]) * (LOW if low else HIGH),
                    float(values[0]),
                    detected,
                )
            ],
        )
    ]


CAUSE = Cause(
    id="learned_std_runaway",
    title="A learned standard deviation runs away",
    find=find,
    exact=False,
    doc=__doc__,
    family="representations",
    leads_to=("stale_second_moment",),
    remedies=("lr_scale", "clip_grad_norm"),
)
