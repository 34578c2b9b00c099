"""The arms have little in common.

## What it is
For a part of the rows one arm is hardly possible: their propensity is near 0 or 1.

## Why it hurts
An average over all rows needs the outcome of the other arm for them, which few rows or none show. These few get
enormous weights, and what was clipped is a bias that no standard error includes.

## How it is detected
Propensities are estimated out of fold. The finding is made if more than 5 % of the rows had to be clipped, or if
weights of inverse propensities leave less than a quarter of the rows as the effective sample size.

## What cures it
Another question, which the data can answer: the average with overlap weights, or that of a population in which both
arms occur. For effects that vary: inverse-variance weights.

## References
- Fisher, *The connection between R-learning and inverse-variance weighting for estimation of heterogeneous treatment
  effects*, 2024, arXiv:2307.09700
- Li, Morgan and Zaslavsky, *Balancing covariates via propensity score weighting*, 2018
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.causal.effect_audit.facts import EffectFacts

_CLIPPED, _EFFECTIVE = 0.05, 0.25


def find(facts: EffectFacts) -> list[Finding]:
    """Find many clipped rows or a small effective sample size."""
    overlap = facts.overlap
    if overlap is None:
        return []
    clipped, effective = overlap.clipped / facts.rows, overlap.effective / facts.rows
    if clipped <= _CLIPPED and effective >= _EFFECTIVE:
        return []
    return [
        RULE.finding(
            "warning",
            0.9,
            f"{overlap.clipped} of {facts.rows} rows have a propensity outside "
            f"[{overlap.clip:g}, {1 - overlap.clip:g}], and inverse propensities leave an effective sample size of "
            f"{number(overlap.effective, 3)}.",
            evidence=(
                Evidence("fraction_clipped", clipped, _CLIPPED),
                Evidence("effective_fraction", effective, _EFFECTIVE),
            ),
        )
    ]


RULE: Rule[EffectFacts] = Rule(
    id="poor_overlap",
    title="The arms have little in common",
    find=find,
    doc=__doc__,
    remedies=("overlap_weights",),
    family="overlap",
)
