"""Multiply the branches by factors whose squares have a bounded sum.

## What it does
`poise.nn.stabilize_residuals` finds the residual branches of a model and multiplies what each adds to the stream by a
factor: all by one over the root of their number (`"uniform"`), or by factors that fall with depth.

## When it helps
Against signals and gradients that grow with depth in a residual network without normalisation: each branch that is as
large as the stream doubles the variance. With the factors, all of them together multiply it by less than three.

## What it costs
Nothing in time. Branches start small, so very deep networks learn a little more slowly at first.

## Making it permanent
Call it once, after the model is made and before the optimizer is.

## References
- Hayou et al., *Stable ResNet*, AISTATS 2021, arXiv:2010.12859
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="stabilize_residuals",
    title="Multiply the branches by factors whose squares have a bounded sum",
    doc=__doc__,
    kind="surgery",
    code=(
        "from poise.nn import stabilize_residuals\n"
        "\n"
        'print(stabilize_residuals(model, kind="uniform").report())  # each branch times 1 / sqrt(number of branches)\n'
        "# branches that it does not find: poise.nn.ScaledResidual(branch, scale=number_of_branches**-0.5)\n"
    ),
)
