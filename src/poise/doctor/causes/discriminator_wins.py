"""The discriminator wins against the generator.

## What it is
The discriminator of a GAN tells real from generated samples without error, and the generator cannot catch up.

## Why it hurts
A perfect discriminator has nothing to teach: its output hardly changes with the sample. The generator's gradient
vanishes (with `log(1 - D)`) or has no useful direction (with `-log D`), and samples stay bad.

## How it is detected
Two optimizers train; the loss of one compares one batch with high and one with low targets (event `adversarial`), that
of the other compares one batch with one target. For half of the run so far, at least 100 steps, the first loss (median
of 11) has been below a twentieth of what it was at first, that of a guess, and in the last three samples the
generator's loss is above three times its first value, or its gradient norm below a tenth. In health the two losses stay
within a factor of a few of a guess; a discriminator that leads for a while is usual. Wasserstein losses are not judged.

## What cures it
A lower learning rate or fewer steps of the discriminator, labels of 0.9 instead of 1, noise on its inputs that decays,
a gradient penalty or spectral normalisation, a smaller discriminator.

```python
opt_d = Adam(d.parameters(), lr=5e-3), Adam(g.parameters(), lr=1e-5)  # bad
d = nn.utils.parametrizations.spectral_norm(layer)  # good, on each layer of the discriminator
```

## References
- Goodfellow et al., *Generative adversarial nets*, NIPS 2014, arXiv:1406.2661
- Arjovsky and Bottou, *Towards principled methods for training generative adversarial networks*, ICLR 2017,
  arXiv:1701.04862
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import confidence, number, own_baseline, upto
from poise.doctor.events import loss_curve
from poise.report.finding import Evidence, Finding
from poise.store import Record, Series

WINS, RISEN, VANISHED, STEPS, SAMPLES = 0.05, 3.0, 0.1, 100, 3


def find(record: Record) -> list[Finding]:
    """Find a discriminator whose loss has been near 0 for half of the run."""
    known, curve = record.events("adversarial"), loss_curve(record)
    if not known or len(curve.steps) <= STEPS or curve.values[0] <= 0:
        return []
    guess = float(np.median(curve.values[:3]))
    lost = np.concatenate([[-1], np.flatnonzero(~(curve.level < WINS * guess))])
    here = np.arange(len(curve.steps))
    since = lost[np.searchsorted(lost, here, side="right") - 1] + 1  # where the level has been near 0 from
    long_enough = np.flatnonzero((here - since >= STEPS) & (here >= 2 * since) & (since <= here))
    for i in long_enough:
        step = int(curve.steps[i])
        evidence = _harm(record, step)
        if evidence is not None and step >= known[0].step:
            return [_finding(curve.level[i], guess, int(curve.steps[since[i]]), step, evidence)]
    return []


def _finding(level: float, guess: float, onset: int, step: int, harm: Evidence) -> Finding:
    what = (
        f"the generator's loss rose from {number(harm.baseline or 0.0)} to {number(harm.value)}"
        if harm.signal == "opponent_loss"
        else f"the generator's gradient fell to {number(harm.value)} from {number(harm.baseline or 0.0)}"
    )
    return CAUSE.finding(
        "error",
        max(0.9, confidence(WINS * guess, max(float(level), 1e-12))),
        f"The discriminator tells generated samples without error since step {onset} (loss {number(float(level))}; "
        f"that of a guess: {number(guess)}), and {what}.",
        onset=onset,
        detected=step,
        evidence=[Evidence("loss", float(level), WINS * guess, guess, step), harm],
    )


def _harm(record: Record, step: int) -> Evidence | None:
    """Return the sign that the generator has lost, known by ``step``."""
    for signal, sign in (("opponent_loss", RISEN), ("opponent_grad_norm", VANISHED)):
        series: Series = record[signal]
        values = upto(series, step)
        if len(values) <= SAMPLES or not np.isfinite(values[-SAMPLES:]).all():
            continue
        first, last = float(own_baseline(values, 3)[-1]), values[-SAMPLES:]
        if (sign > 1 and first > 0 and (last > sign * first).all()) or (sign < 1 and (last < sign * first).all()):
            return Evidence(signal, float(last[-1]), sign * first, first, step)
    return None


CAUSE = Cause(
    id="discriminator_wins",
    title="The discriminator wins against the generator",
    find=find,
    exact=False,
    doc=__doc__,
    family="representations",
)
