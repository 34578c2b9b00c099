"""Effects of treatments: estimates that do not hang on a few rows, and an audit that says on how many they do."""

from typing import TYPE_CHECKING

from poise.tools.lazy_front import lazy_front

if TYPE_CHECKING:
    from poise.causal.average_effect import AverageEffect
    from poise.causal.effect_audit import audit_effect
    from poise.causal.invalid_iv.functional import Candidate, DoublyRobustAverage, Functional, InvalidIVAverage
    from poise.causal.invalid_iv.invalid_iv_ate import InvalidIVATE, WeakIdentificationError
    from poise.causal.invalid_iv.selective_estimator import SelectiveEstimator, pseudo_risk
    from poise.causal.learners.meta_learners import SLearner, TLearner, XLearner
    from poise.causal.learners.presets import DRLearner, RLearner
    from poise.causal.learners.pseudo_outcome_learner import PseudoOutcomeLearner
    from poise.causal.learners.weight_report import weight_report
    from poise.causal.representation.evolved_features import EvolvedFeatures
    from poise.causal.representation.representation_report import representation_report
    from poise.causal.simulations import SimulatedEffects, simulated_effects

__all__ = [
    "AverageEffect",
    "Candidate",
    "DRLearner",
    "DoublyRobustAverage",
    "EvolvedFeatures",
    "Functional",
    "InvalidIVATE",
    "InvalidIVAverage",
    "PseudoOutcomeLearner",
    "RLearner",
    "SLearner",
    "SelectiveEstimator",
    "SimulatedEffects",
    "TLearner",
    "WeakIdentificationError",
    "XLearner",
    "audit_effect",
    "pseudo_risk",
    "representation_report",
    "simulated_effects",
    "weight_report",
]

lazy_front(__name__)
