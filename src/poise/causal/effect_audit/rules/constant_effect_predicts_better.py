"""One effect for all predicts better than effects that vary.

## What it is
In rows that were not fitted, outcomes are predicted better with one number for the effect than with the estimator's
effects of each row.

## Why it hurts
The differences between people that the estimator reports are noise. Who is treated because of them is treated at
random.

## How it is detected
The estimator is fitted on four of five folds at a time; in the fifth, outcome residuals are compared with treatment
residuals times its effects, and times one constant from the same folds. The finding is made if the mean squared error
of the constant is lower, and is a warning if it is lower by more than chance (1.96 standard errors of paired rows).

## What cures it
Report the average. A simpler model of the effect, inverse-variance weights, or more rows.

## References
- Nie and Wager, *Quasi-oracle estimation of heterogeneous treatment effects*, 2021, arXiv:1712.04912
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.causal.effect_audit.facts import EffectFacts

_Z = 1.96


def find(facts: EffectFacts) -> list[Finding]:
    """Find effects of rows that predict worse than one constant."""
    constant = facts.constant
    if constant is None or constant.spread == 0 or constant.difference <= 0:
        return []
    clear = constant.difference > _Z * constant.stderr
    chance = "by more than chance" if clear else "though not by more than chance"
    return [
        RULE.finding(
            "warning" if clear else "info",
            0.95 if clear else 0.6,
            f"In rows that were not fitted, one effect for all predicts better ({number(constant.constant_loss, 3)}) "
            f"than effects that vary ({number(constant.loss, 3)}), {chance}.",
            evidence=(Evidence("loss_difference", constant.difference, _Z * constant.stderr),),
        )
    ]


RULE: Rule[EffectFacts] = Rule(
    id="constant_effect_predicts_better",
    title="One effect for all predicts better",
    find=find,
    doc=__doc__,
    family="effects that vary",
)
