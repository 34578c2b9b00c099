"""The latent variables of a variational autoencoder are not used.

## What it is
For every input the encoder returns the prior: the latent variables carry nothing, and the decoder returns the same for
all inputs (posterior collapse).

## Why it hurts
There is no representation, and samples do not depend on the latent variables. The loss is that of the mean of the data.

## How it is detected
At the end of the script: none of the latent variables has been active (`latent_active` is 0: all standard deviations of
the posterior are above 0.95) in at least the last three samples, from the first half of the run on and into the second,
in a run of at least 200 steps. And the loss has come to rest: of its whole fall less than a twentieth came after the
last sample, and less than a tenth in the last third. A healthy run may begin like this, before the decoder has learned
to use the variables, but then its loss goes on to fall; some inactive variables are usual. Recognised is `mean +
exp(0.5 * log_variance) * noise`.

## What cures it
Sum both terms over the same dimensions (not the mean over pixels and the sum over latents), a smaller weight of the KL
term, or one that grows from 0 (annealing), free bits.

```python
loss = F.mse_loss(x_hat, x) + kl.sum(1).mean()  # bad: the mean over pixels counts for one pixel
loss = F.mse_loss(x_hat, x, reduction="sum") / len(x) + kl.sum(1).mean()  # good
```

## References
- Bowman et al., *Generating sentences from a continuous space*, CoNLL 2016, arXiv:1511.06349
- Lucas, Tucker, Grosse and Norouzi, *Don't blame the ELBO! A linear VAE perspective on posterior collapse*, NeurIPS
  2019, arXiv:1911.02469
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.events import LossCurve, loss_curve, loss_is_no_measure
from poise.report.finding import Evidence, Finding
from poise.store import Record

STEPS, SAMPLES, AFTERWARDS, FALLING = 100, 3, 0.05, 0.1


def find(record: Record) -> list[Finding]:
    """Find latent variables none of which is used by the end."""
    ends, active, curve = record.events("script_end"), record["latent_active"], loss_curve(record)
    if (
        not ends
        or not len(active.steps)
        or len(curve.steps) < 2 * STEPS
        or record.last_step >= loss_is_no_measure(record)
    ):
        return []
    last = int(curve.steps[-1])
    used = np.flatnonzero(np.asarray(active.values) > 0)
    since, until = used[-1] + 1 if len(used) else 0, int(active.steps[-1])
    if len(active.steps) - since < SAMPLES or not active.steps[since] < last // 2 <= until:
        return []
    if _has_fallen_since(curve, until, AFTERWARDS) or _has_fallen_since(curve, 2 * last // 3, FALLING):
        return []
    onset = int(active.steps[since])
    return [
        CAUSE.finding(
            "error",
            0.9,
            f"None of the latent variables is used since step {onset}: for every input the posterior is the prior, and "
            "the decoder returns the same for all.",
            onset=onset,
            detected=max(ends[-1].step, last),
            evidence=[Evidence("latent_active", 0.0, None, None, int(active.steps[-1]))],
        )
    ]


def _has_fallen_since(curve: LossCurve, step: int, share: float) -> bool:
    """Return whether more than this share of the loss's whole fall came after ``step``."""
    then, now = float(curve.level[np.searchsorted(curve.steps, step)]), float(curve.level[-1])
    return then - now > share * max(float(curve.level[0]) - now, 0.0)


CAUSE = Cause(
    id="posterior_collapse",
    title="The latent variables of a VAE are not used",
    find=find,
    exact=False,
    doc=__doc__,
    family="representations",
)
