"""Average effects without unmeasured confounding, each the solution of a doubly robust estimating equation."""

from __future__ import annotations

from typing import Any

import numpy as np

from poise.causal.average_effect import AverageEffect, ratio_average
from poise.causal.inputs import CausalData
from poise.causal.learners.pseudo_outcomes import ArmNuisances, doubly_robust
from poise.causal.nuisances.effect_nuisances import EffectNuisances


def arm_nuisances(data: CausalData, found: EffectNuisances, arm: int) -> ArmNuisances:
    """Return what pseudo-outcomes of one arm against the control are made of, of shape (draws, rows)."""
    return ArmNuisances(
        treated=(data.arm == arm).astype(float),
        untreated=(data.arm == 0).astype(float),
        y=data.y,
        pi=found.propensity[..., arm],
        kappa=found.complement,
        mu1=found.outcome[..., arm],
        mu0=found.outcome[..., 0],
    )


def doubly_robust_average(data: CausalData, found: EffectNuisances, arm: int = 1, /, **labels: Any) -> AverageEffect:
    """Return the average effect over all rows: the mean of the doubly robust pseudo-outcome.

    It is consistent if the propensities or the mean outcomes are, and its standard error is that of its influence
    function, with both learned.

    Args:
        data: the rows.
        found: their nuisances.
        arm: number of the arm.
        **labels: ``arm`` and ``control`` of the result.

    References:
        Robins, Rotnitzky and Zhao (1994). Estimation of regression coefficients when some regressors are not always
        observed. Chernozhukov et al. (2018). Double/debiased machine learning for treatment and structural parameters.
    """
    pseudo = doubly_robust(arm_nuisances(data, found, arm)).mean(0)
    return ratio_average(pseudo, np.ones_like(pseudo), data.weight, data.groups, **labels)


def overlap_average(data: CausalData, found: EffectNuisances, arm: int = 1, /, **labels: Any) -> AverageEffect:
    r"""Return the average effect with the overlap weights $\pi \kappa$.

    With $e = \pi / (\pi + \kappa)$ among the rows of the arm and the control, it solves
    $\sum (A - e) (Y - \eta) = \tau \sum (A - e)^2$, which is the efficient influence function of this average when the
    weights are estimated too.
    """
    n = arm_nuisances(data, found, arm)
    pair = n.treated + n.untreated
    e = n.pi / (n.pi + n.kappa)
    residual = (n.treated - e) * pair
    eta = e * n.mu1 + (1 - e) * n.mu0
    numerator, denominator = (residual * (n.y - eta)).mean(0), (residual**2).mean(0)
    return ratio_average(numerator, denominator, data.weight, data.groups, target="overlap", **labels)
