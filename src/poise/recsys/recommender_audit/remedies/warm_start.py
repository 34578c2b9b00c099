"""Start each retraining from the last weights.

## What it does
The new training starts from the weights of the model that is served instead of random ones.

## When it helps
Against lists that change with the seed (`seed_sensitivity`) or with one interaction (`interaction_sensitivity`).

## What it costs
Nothing in time. Old interactions keep their influence, and a bad model is inherited.

## Making it permanent
Load the last weights before training; start afresh on a schedule, for example once a month.

## References
- Oh et al., *FINEST: stabilizing recommendations by rank-preserving fine-tuning*, TKDD 2024, arXiv:2402.03481
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="warm_start",
    title="Start each retraining from the last weights",
    doc=__doc__,
    kind="code",
    code=('model.load_state_dict(torch.load("served.pt"))\nfit(model, events)\n'),
)
