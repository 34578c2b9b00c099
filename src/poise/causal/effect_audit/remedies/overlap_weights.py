"""Average over the overlap of both arms.

## What it does
Weights each row by the product of the probabilities of both arms. Nothing is divided by a propensity, and no row is
clipped or left out.

## When it helps
Against `poor_overlap`, and where rows with a propensity near 0 or 1 decide an average: `sign_hangs_on_few_rows`,
`significance_hangs_on_few_rows`, `estimate_depends_on_learner`.

## What it costs
The question: it is the average effect in the overlap of both arms, not in all rows. Where the effect is the same for
all, both averages are the same.

## Making it permanent
Report the average that the line shown gives, with its name. For effects that vary, `weights="ivw"` (the default) uses
the same weights.

## References
- Li, Morgan and Zaslavsky, *Balancing covariates via propensity score weighting*, 2018
- Fisher, *The connection between R-learning and inverse-variance weighting for estimation of heterogeneous treatment
  effects*, 2024, arXiv:2307.09700
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="overlap_weights",
    title="Average over the overlap of both arms",
    doc=__doc__,
    kind="code",
    code="DRLearner(random_state=0).fit(X, y, treatment=t).overlap_ate()\n",
)
