"""Without a few rows the effect is significant where it was not, or the other way round.

## What it is
Leaving out at most one row in a hundred moves 0 out of, or into, the 95 % interval of the average effect.

## Why it hurts
"Significant" or "no effect found" is then a statement about these rows.

## How it is detected
As for the sign: rows are sorted by their influence on the end of the interval that is nearer to 0, the smallest number
that suffices is read off, and the estimator is fitted again without them. The finding is made if the significance then
has changed, with at most 1 % of the rows left out.

## What cures it
Report the interval and not the significance. Estimators with less variance: overlap weights where propensities come
near 0 or 1, learners that predict the outcome better.

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
    """Find a significance that 1 % of the rows decide."""
    flip = facts.flip("significance")
    if flip is None or not flip.happened or flip.dropped > max(1, _FEW * flip.of):
        return []
    now, then = ("significant", "not") if facts.significant else ("not significant", "significant")
    return [
        RULE.finding(
            "warning",
            0.95,
            f"The average effect is {now} at 5 %; without {flip.dropped} of {flip.of} {flip.units} it is {then} "
            f"({number(flip.estimate, 3)}, standard error {number(flip.stderr, 3)}).",
            where=tuple(f"{flip.units[:-1]} {i}" for i in flip.first),
            evidence=(Evidence("rows_left_out", flip.dropped, _FEW * flip.of),),
        )
    ]


RULE: Rule[EffectFacts] = Rule(
    id="significance_hangs_on_few_rows",
    title="A few rows decide the significance of the effect",
    find=find,
    doc=__doc__,
    remedies=("overlap_weights",),
    family="few rows",
)
