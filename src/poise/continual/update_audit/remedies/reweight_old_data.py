"""Give old data more weight in the loss.

## What it does
The loss of replayed data is weighted more than that of new data. The audit tries 0.7 and 0.9; in a loop of the user it
mixes the gradient of a batch of old data into that of the update.

## When it helps
Where gradients of new and old data oppose each other. It often does what a projection of gradients does, at less cost.

## What it costs
Nothing in a loop that replays old data; a second backward pass in one that does not. New data are learned more slowly.

## Making it permanent
Weight the two parts of the loss.

## References
- Hess et al., *Two complementary perspectives to continual learning*, 2024, arXiv:2311.04898
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="reweight_old_data",
    title="Give old data more weight in the loss",
    doc=__doc__,
    kind="code",
    code=(
        "loss = (1 - weight) * F.cross_entropy(model(new_x), new_y) + weight * F.cross_entropy(model(old_x), old_y)\n"
    ),
)
