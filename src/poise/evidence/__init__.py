"""Evidence: whether runs over seeds, users or data sets show a difference, with a verdict. No sampling chains."""

from typing import TYPE_CHECKING

from poise.tools.lazy_front import lazy_front

if TYPE_CHECKING:
    from poise.evidence.bayes_factor import BayesFactor
    from poise.evidence.binomial_evidence import BinomialEvidence, GroupEffect
    from poise.evidence.estimate import Estimate
    from poise.evidence.event_rates import RateComparison, compare_event_rates
    from poise.evidence.intervals import clopper_pearson
    from poise.evidence.paired import PairedComparison, compare_paired
    from poise.evidence.pooled import PooledEvidence, PriorRobustness, bf_robustness, pooled_bf, sequential_bf
    from poise.evidence.priors import BetaPrior, GammaPrior, HalfNormalPrior
    from poise.evidence.quadrature import Quadrature, QuadratureError
    from poise.evidence.random_effects import RandomEffects, random_effects
    from poise.evidence.refits import Variant, refit
    from poise.evidence.verdict import VERDICTS, Verdict, verdict_of
    from poise.evidence.wins import Wins, paired_wins

__all__ = [
    "VERDICTS",
    "BayesFactor",
    "BetaPrior",
    "BinomialEvidence",
    "Estimate",
    "GammaPrior",
    "GroupEffect",
    "HalfNormalPrior",
    "PairedComparison",
    "PooledEvidence",
    "PriorRobustness",
    "Quadrature",
    "QuadratureError",
    "RandomEffects",
    "RateComparison",
    "Variant",
    "Verdict",
    "Wins",
    "bf_robustness",
    "clopper_pearson",
    "compare_event_rates",
    "compare_paired",
    "paired_wins",
    "pooled_bf",
    "random_effects",
    "refit",
    "sequential_bf",
    "verdict_of",
]

lazy_front(__name__)
