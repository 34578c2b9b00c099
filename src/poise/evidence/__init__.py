"""Evidence: whether runs over seeds, users or data sets show a difference, with a verdict. No sampling chains."""

from typing import TYPE_CHECKING

from poise.tools.lazy_front import lazy_front

if TYPE_CHECKING:
    from poise.evidence.bayes_factor import BayesFactor
    from poise.evidence.binomial_evidence import BinomialEvidence, GroupEffect
    from poise.evidence.domain_weights import DomainWeights, domain_weights
    from poise.evidence.estimate import Estimate
    from poise.evidence.event_rates import RateComparison, compare_event_rates
    from poise.evidence.intervals import clopper_pearson
    from poise.evidence.mean_interval import mean_interval
    from poise.evidence.overlap import Clipped, Overlap, clip_probabilities, effective_sample_size, overlap
    from poise.evidence.paired import PairedComparison, compare_paired
    from poise.evidence.pooled import PooledEvidence, PriorRobustness, bf_robustness, pooled_bf, sequential_bf
    from poise.evidence.priors import BetaPrior, GammaPrior, HalfNormalPrior
    from poise.evidence.quadrature import Quadrature, QuadratureError
    from poise.evidence.random_effects import RandomEffects, random_effects
    from poise.evidence.refits import Variant, refit
    from poise.evidence.tilt_sample import TiltSample, tilt_sample
    from poise.evidence.verdict import VERDICTS, Verdict, verdict_of
    from poise.evidence.wins import Wins, paired_wins

__all__ = [
    "VERDICTS",
    "BayesFactor",
    "BetaPrior",
    "BinomialEvidence",
    "Clipped",
    "DomainWeights",
    "Estimate",
    "GammaPrior",
    "GroupEffect",
    "HalfNormalPrior",
    "Overlap",
    "PairedComparison",
    "PooledEvidence",
    "PriorRobustness",
    "Quadrature",
    "QuadratureError",
    "RandomEffects",
    "RateComparison",
    "TiltSample",
    "Variant",
    "Verdict",
    "Wins",
    "bf_robustness",
    "clip_probabilities",
    "clopper_pearson",
    "compare_event_rates",
    "compare_paired",
    "domain_weights",
    "effective_sample_size",
    "mean_interval",
    "overlap",
    "paired_wins",
    "pooled_bf",
    "random_effects",
    "refit",
    "sequential_bf",
    "tilt_sample",
    "verdict_of",
]

lazy_front(__name__)
