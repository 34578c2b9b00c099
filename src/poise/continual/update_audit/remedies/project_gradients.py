"""Project gradients against those of old data.

## What it does
Before every step the gradient is changed as little as possible so that it does not oppose that of a batch of old data
(GEM); with a memory strength, half of the old gradient is added even without a conflict.

## When it helps
Where gradients of new and old data oppose each other. Compare it with more weight for old data, which does much of the
same.

## What it costs
A second forward and backward pass on old data in every step.

## Making it permanent
Wrap the optimizer, and give it the loss on old data before each step.

## References
- Lopez-Paz and Ranzato, *Gradient episodic memory for continual learning*, NeurIPS 2017, arXiv:1706.08840
- Hess et al., *Two complementary perspectives to continual learning*, 2024, arXiv:2311.04898
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="project_gradients",
    title="Project gradients against those of old data",
    doc=__doc__,
    kind="code",
    code=(
        "from poise.optim import GEM\n"
        "\n"
        "optimizer = GEM(optimizer, always=True)\n"
        "# before every optimizer.step():\n"
        "optimizer.reference(F.cross_entropy(model(old_x), old_y))\n"
    ),
)
