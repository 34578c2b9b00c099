"""A learned standard deviation runs away.

## What it is
The standard deviation of a Gaussian policy or likelihood is a parameter or an output of the network, and goes to zero
or without bound.

## Why it hurts
The gradient of a Gaussian log-likelihood grows with `1 / std**2`: near 0 one point off the mean breaks the weights, and
a policy no longer explores. Far above its start the policy is noise, and the likelihood has given up the data.

## How it is detected
`learned_std` is the geometric mean of the deviations that `Normal.log_prob` or `F.gaussian_nll_loss` is given,
`standard_residual` the RMS of the residuals in units of them, 1 where they are right. In three consecutive samples: the
deviation is more than ten times its first value and the residuals are below a tenth of it, or, of a policy (whose
actions are drawn with this deviation), it is more than 100 times its first value: a warning. Or it is below a
thousandth of its first value: *info*, for data without noise make it fall, too. With a spike or divergence of the loss
afterwards it is an error.

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
from poise.doctor.causes.reading import align, confidence, first_run, number
from poise.doctor.events import breakdowns, find_events, following
from poise.report.finding import Evidence, Finding
from poise.store import Record

LOW, WIDE, FAR, IDLE, SAMPLES = 1e-3, 10.0, 100.0, 0.1, 3


def find(record: Record) -> list[Finding]:
    """Find a learned deviation that is far from where it began, and from the residuals."""
    series = record["learned_std"]
    values = np.asarray(series.values, dtype=float)
    if not len(values) or not np.isfinite(values[0]) or values[0] <= 0:
        return []
    ratio, residual = values / values[0], align(record["standard_residual"], series.steps)
    drawn = series.steps >= min((e.step for e in record.events("policy_gradient")), default=np.inf)
    wide = ((ratio > WIDE) & (residual < IDLE)) | ((ratio > FAR) & drawn)
    ends = {low: first_run(ratio < LOW if low else wide, SAMPLES) for low in (False, True)}
    found = min(((i, low) for low, i in ends.items() if i is not None), default=None)
    if found is None:
        return []
    i, low = found
    onset, detected, first = int(series.steps[i - SAMPLES + 1]), int(series.steps[i]), float(values[0])
    limit = LOW if low else WIDE
    return [
        CAUSE.finding(
            "info" if low else "warning",
            confidence(limit, max(float(ratio[i]), 1e-12)) if low else confidence(float(ratio[i]), limit),
            f"The learned standard deviation {'fell' if low else 'rose'} from {number(first)} to "
            f"{number(float(values[i]))} by step {detected} (residuals: {number(float(residual[i]))} times as much).",
            onset=onset,
            detected=detected,
            event=following(breakdowns(find_events(record)), onset),
            severity_with_event="error",
            evidence=[
                Evidence("learned_std", float(values[i]), first * limit, first, detected),
                Evidence("standard_residual", float(residual[i]), None, None, detected),
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
