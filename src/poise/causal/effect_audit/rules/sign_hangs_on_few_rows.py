"""Without a few rows the effect has the other sign.

## What it is
Leaving out at most one row in a hundred turns a positive average effect into a negative one, or the other way round.

## Why it hurts
The conclusion is about these rows, not about the population: with another sample of the same people it may well be the
opposite one. Standard errors do not show it, since they describe the noise of a sample, not what a few unusual rows do
to a mean.

## How it is detected
Rows are sorted by their influence on the average. The smallest number of them whose absence changes the sign is read
off, and the estimator is fitted again without them: the finding is made if the sign then has changed, with at most 1 %
of the rows left out.

## What cures it
Look at the rows that the report names: errors of entry, or a heavy tail of the outcome. Overlap weights, where they are
rows with a propensity near 0 or 1; a logarithm or a quantile of the outcome, where a few outcomes are enormous; and the
sentence that the effect rests on them, where they are right.

## References
- Broderick, Giordano and Meager, *An automatic finite-sample robustness metric: when can dropping a little data make a
  big difference?*, 2020, arXiv:2011.14999
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.causal.effect_audit.facts import EffectFacts

_FEW = 0.01


def find(facts: EffectFacts) -> list[Finding]:
    """Find a sign that 1 % of the rows decide."""
    flip = facts.flip("sign")
    if flip is None or not flip.happened or flip.dropped > max(1, _FEW * flip.of):
        return []
    return [
        RULE.finding(
            "error",
            0.95,
            f"Without {flip.dropped} of {flip.of} {flip.units} the average effect is {number(flip.estimate, 3)} in "
            f"place of {number(facts.average.estimate, 3)}.",
            where=tuple(f"{flip.units[:-1]} {i}" for i in flip.first),
            evidence=(Evidence("rows_left_out", flip.dropped, _FEW * flip.of),),
        )
    ]


RULE: Rule[EffectFacts] = Rule(
    id="sign_hangs_on_few_rows",
    title="A few rows decide the sign of the effect",
    find=find,
    doc=__doc__,
    remedies=("overlap_weights",),
    family="few rows",
)
