"""Random-effects mean of proportions, the frequentist counterpart of the hierarchical Bayes factors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from poise.evidence import _checks
from poise.report import Report, Table


@dataclass(frozen=True, slots=True)
class RandomEffects:
    """Mean of a proportion over a population of groups.

    Args:
        mean: REML estimate of the mean proportion.
        se: its standard error.
        interval: 95 % interval of the mean.
        tau: REML estimate of the standard deviation of the groups' true proportions.
        q: Cochran's Q.
        df: degrees of freedom of Q.
        p_heterogeneity: p-value of Q against equal proportions.
        tau2_dl: DerSimonian and Laird's moment estimate of tau squared.
    """

    mean: float
    se: float
    interval: tuple[float, float]
    tau: float
    q: float
    df: int
    p_heterogeneity: float
    tau2_dl: float

    def report(self) -> Report:
        """Return the estimates as a report."""
        interval = f"[{self.interval[0]:.4f}, {self.interval[1]:.4f}]"
        rows: list[list[object]] = [
            ["mean proportion", self.mean],
            ["standard error", self.se],
            ["95 % interval", interval],
            ["standard deviation between groups", self.tau],
            ["Cochran's Q", self.q],
            ["degrees of freedom", self.df],
            ["p-value of equal proportions", self.p_heterogeneity],
        ]
        summary = f"The mean proportion is {self.mean:.4f} {interval}; groups differ by {self.tau:.4f}."
        return Report("Random effects", summary, blocks=[Table("Estimates", ["quantity", "value"], rows)])


def random_effects(successes: Any, trials: Any) -> RandomEffects:
    """Estimate the mean of a proportion over groups by restricted maximum likelihood.

    Args:
        successes: successes per group.
        trials: trials per group, at least 1.

    Raises:
        ValueError: if counts are not whole, negative, or successes exceed trials; if there are fewer than 2 groups; or
            if a group has only successes or only failures (its sampling variance would be 0).

    References:
        DerSimonian and Laird (1986). Meta-analysis in clinical trials. Viechtbauer (2005). Bias and efficiency of
        meta-analytic variance estimators in the random-effects model.
    """
    x, n = _checks.successes_and_trials(successes, trials)
    if len(x) < 2:
        raise ValueError(f"successes must hold at least 2 groups, got {len(x)}")
    if ((x == 0) | (x == n)).any():
        i = int(np.flatnonzero((x == 0) | (x == n))[0])
        raise ValueError(f"successes must be neither 0 nor all trials, got {x[i]:g} of {n[i]:g} in row {i}")
    y, v = x / n, x / n * (1 - x / n) / n
    tau2 = _reml(y, v)
    w = 1.0 / (v + tau2)
    mean, se = float((w * y).sum() / w.sum()), float(1.0 / math.sqrt(w.sum()))
    fixed = 1.0 / v
    q, df = float((fixed * (y - (fixed * y).sum() / fixed.sum()) ** 2).sum()), len(y) - 1
    spread = float(fixed.sum() - (fixed**2).sum() / fixed.sum())
    half = float(stats.norm.isf(0.025)) * se
    return RandomEffects(
        mean=mean,
        se=se,
        interval=(mean - half, mean + half),
        tau=math.sqrt(tau2),
        q=q,
        df=df,
        p_heterogeneity=float(stats.chi2.sf(q, df)),
        tau2_dl=max(0.0, (q - df) / spread),
    )


def _reml(y: NDArray[np.float64], v: NDArray[np.float64]) -> float:
    """Variance between groups at the maximum of the restricted likelihood; 0 where that lies at the edge."""

    def slope(tau2: float) -> float:  # twice the derivative of the restricted log likelihood
        w = 1.0 / (v + tau2)
        residual = y - (w * y).sum() / w.sum()
        return float((w**2 * residual**2).sum() - w.sum() + (w**2).sum() / w.sum())

    if slope(0.0) <= 0.0:
        return 0.0
    upper = float(y.var()) + float(v.max())
    while slope(upper) > 0.0:
        upper *= 2.0
    return float(optimize.brentq(slope, 0.0, upper, xtol=1e-16, rtol=1e-12))
