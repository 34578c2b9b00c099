"""The estimate depends on the learners of its nuisances.

## What it is
The doubly robust average with linear models, with boosted trees and with a forest differs by more than chance.

## Why it hurts
At most one of them is right, and nothing in the estimate itself says which. The choice of a learner is then a choice of
the result.

## How it is detected
The same average is computed with three pairs of learners on the same folds. The finding is made if the largest and the
smallest differ by more than two standard errors, although all three use the same rows, whose noise they share.

## What cures it
Compare how well each predicts the outcome and the treatment out of fold, and take the better one. Where all predict
equally well: overlap weights, which divide by no propensity; or the statement of the whole range.

## References
- Sun, Cui and Tchetgen Tchetgen, *Selective machine learning of the average treatment effect with an invalid
  instrumental variable*, 2022, arXiv:1907.11882
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.causal.effect_audit.facts import EffectFacts

_MOST = 2.0


def find(facts: EffectFacts) -> list[Finding]:
    """Find averages of different learners that differ by more than two standard errors."""
    if not facts.learner_spread > _MOST:
        return []
    ranked = sorted(facts.learners, key=lambda name: facts.learners[name].estimate)
    low, high = ranked[0], ranked[-1]
    return [
        RULE.finding(
            "warning",
            0.85,
            f"The average effect is {number(facts.learners[low].estimate, 3)} with learners of the kind '{low}' and "
            f"{number(facts.learners[high].estimate, 3)} with '{high}', {number(facts.learner_spread, 2)} standard "
            "errors apart.",
            where=(low, high),
            evidence=(Evidence("learner_spread", facts.learner_spread, _MOST),),
        )
    ]


RULE: Rule[EffectFacts] = Rule(
    id="estimate_depends_on_learner",
    title="The estimate depends on the learners",
    find=find,
    doc=__doc__,
    remedies=("overlap_weights",),
    family="learners",
)
