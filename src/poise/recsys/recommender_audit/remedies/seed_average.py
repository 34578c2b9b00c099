"""Average the scores of several seeds.

## What it does
Several recommenders are trained with different seeds, and their scores are averaged.

## When it helps
Against lists that change with the seed (`seed_sensitivity`).

## What it costs
As many trainings, and as many scores at serving, as there are seeds.

## Making it permanent
Average standardised scores, or ranks if the scores are on different scales.

## References
- Oh et al., *Rank list sensitivity of recommender systems to interaction perturbations*, CIKM 2022, arXiv:2201.12686
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="seed_average",
    title="Average the scores of several seeds",
    doc=__doc__,
    kind="code",
    code=("scores = sum(fit(events, seed) for seed in range(5)) / 5\n"),
)
