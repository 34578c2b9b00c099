"""Take the median over seeds.

## What it does
Repeats the cross-fitted estimate with other folds and seeds of learners, and takes the median.

## When it helps
Against `estimate_depends_on_seed`: what remains of the randomness falls with the number of seeds.

## What it costs
As many fits as seeds; 20 are usual.

## Making it permanent
Run the lines shown. The standard error of the median is the median of the standard errors, each widened by how far its
own estimate is from the median.

## References
- Chernozhukov et al., *Double/debiased machine learning for treatment and structural parameters*, 2018,
  arXiv:1608.00060
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="median_over_seeds",
    title="Take the median over seeds",
    doc=__doc__,
    kind="code",
    code=(
        "averages = [DRLearner(random_state=seed).fit(X, y, treatment=t).ate() for seed in range(20)]\n"
        "estimate = np.median([a.estimate for a in averages])\n"
        "stderr = np.median([np.hypot(a.stderr, a.estimate - estimate) for a in averages])\n"
    ),
)
