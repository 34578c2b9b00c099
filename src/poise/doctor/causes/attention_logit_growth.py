"""Attention logits grow without bound.

## What it is
The largest attention logit `q·k / sqrt(d_head)` of a layer keeps growing. Logits are the only activations that are
quadratic in the size of the parameters (both `q` and `k` grow), so a learning rate that everything else tolerates
drives them up first.

## Why it hurts
Softmax of large logits puts all weight on one token. Attention then is a table lookup that passes next to no gradient,
the loss stalls or spikes, and in large models the run diverges. Every run of Wortsman et al. whose largest logit passed
10,000 diverged; losses are already worse near 1,000.

## How it is detected
`attention_logit_max[layer]` exceeds both 50 and three times its early value in this run in two consecutive samples, or
exceeds 1,000 in one. Healthy runs stay between 4 and 30. The entropy of the layer's attention (relative to uniform
attention) shows whether it has collapsed. A straight line through the logarithm forecasts when 10,000 will be reached,
if that is still to come. It is an error once logits pass 1,000, attention has collapsed, or the loss has suffered; a
warning before.

## What cures it
Normalise queries and keys before their product, cap the logits, or lower the learning rate of the run.

```python
# bad: nothing bounds the product
attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
# good: |logit| is at most gain_q * gain_k * sqrt(d_head)
attended = F.scaled_dot_product_attention(norm_q(q), norm_k(k), v, is_causal=True)
```

## References
- Wortsman et al., *Small-scale proxies for large-scale Transformer training instabilities*, ICLR 2024,
  arXiv:2309.14322
- Dehghani et al., *Scaling vision transformers to 22 billion parameters*, ICML 2023, arXiv:2302.05442
- Zhai et al., *Stabilizing Transformer training by preventing attention entropy collapse*, ICML 2023,
  arXiv:2303.06296
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import (
    FAR,
    Mask,
    confidence,
    extreme_after,
    first_crossing,
    listing,
    number,
    own_baseline,
    typical,
    update_ratio,
    upto,
)
from poise.doctor.events import find_events, following
from poise.report.finding import Evidence, Finding
from poise.store import Record, Series

LARGE, ALARMING, FATAL = 50.0, 1e3, 1e4
COLLAPSED = 0.1
_RATE_FIRST = ("lr_scale", "warmup", "logit_soft_cap", "weight_decay")


def find(record: Record) -> list[Finding]:
    """Find layers whose attention logits outgrow their early values."""
    layers = record.by_layer("attention_logit_max")
    hit = first_crossing(layers, _outgrown)
    if hit is None:
        return []
    layer = hit.where[0]
    series = layers[layer]
    early = float(own_baseline(upto(series, hit.step))[-1])
    onset = _onset(series, hit.step, early)
    peak, peak_step = extreme_after(series, hit.step)
    entropy = _lowest_entropy(record, layer, hit.step)
    event = following(find_events(record), onset)
    severe = not abs(peak) < ALARMING or entropy.value < COLLAPSED
    return [
        CAUSE.finding(
            "error" if severe else "warning",
            confidence(abs(peak), max(LARGE, 3 * early)),
            f"Attention logits of {listing(hit.where)} grew from {number(early)} to {number(peak)} by step {peak_step}"
            + f"{_collapse(entropy)}{'' if event else _forecast(series, peak)}.",
            where=hit.where,
            onset=onset,
            detected=hit.step,
            event=event,
            severity_with_event="error",
            # Where each update replaces a tenth of the weights, a cap on the logits leaves the reason as it is.
            remedies=_RATE_FIRST if typical(update_ratio(record), hit.step) >= FAR else None,
            evidence=[
                Evidence(f"attention_logit_max[{layer}]", peak, max(LARGE, 3 * early), early, peak_step),
                *([entropy] if np.isfinite(entropy.value) else []),
            ],
        )
    ]


def _outgrown(series: Series) -> Mask:
    values = np.where(np.isnan(series.values), 0.0, np.abs(series.values))  # NaN has a cause of its own
    large = values > np.maximum(LARGE, 3 * np.nan_to_num(own_baseline(values), nan=0.0))
    twice = large & np.concatenate([[False], large[:-1]])
    # At the very first sample there is no growth yet, whatever the size.
    return twice | (large & (values > ALARMING))


def _onset(series: Series, step: int, early: float) -> int:
    values = upto(series, step)
    calm = np.flatnonzero(np.abs(values) <= 2 * early)
    first = int(calm[-1]) + 1 if len(calm) else 0
    return int(series.steps[min(first, len(values) - 1)])


def _lowest_entropy(record: Record, layer: str, step: int) -> Evidence:
    series = record[f"attention_entropy[{layer}]"]
    later = np.flatnonzero((series.steps >= step) & np.isfinite(series.values))
    if not len(later):
        return Evidence("", np.inf)
    i = later[np.argmin(series.values[later])]
    early = float(own_baseline(series.values)[i])
    return Evidence(f"attention_entropy[{layer}]", float(series.values[i]), COLLAPSED, early, int(series.steps[i]))


def _collapse(entropy: Evidence) -> str:
    if not entropy.value < COLLAPSED:
        return ""
    return f" and attention collapsed onto single tokens (entropy {number(entropy.value)} of 1)"


def _forecast(series: Series, peak: float) -> str:
    """Return the step at which the logits reach ``FATAL``, in words; nothing if they have reached it before."""
    if not abs(peak) < FATAL:
        return ""
    finite = np.isfinite(series.values) & (series.values > 0)
    steps, values = series.steps[finite][-50:], series.values[finite][-50:]
    if len(steps) < 5 or steps[-1] == steps[0]:
        return ""
    slope, offset = np.polyfit(steps - steps[-1], np.log10(values), 1)
    if slope <= 0:
        return ""
    eta = int(steps[-1] + (np.log10(FATAL) - offset) / slope)
    if eta <= series.steps[-1]:
        return ""
    return f"; at this rate they reach {FATAL:.0f}, where runs diverge, near step {eta}"


CAUSE = Cause(
    id="attention_logit_growth",
    title="Attention logits grow without bound",
    find=find,
    exact=False,
    doc=__doc__,
    family="activations and logits",
    leads_to=("attention_entropy_collapse", "stale_second_moment"),
    remedies=("logit_soft_cap", "lr_scale", "warmup", "weight_decay"),
)
