"""Loops whose output becomes their input: feedback of labels, self-consuming generators, synthetic training rows."""

from typing import TYPE_CHECKING

from poise.tools.lazy_front import lazy_front

if TYPE_CHECKING:
    from poise.loops.augmentation_audit import audit_augmentation
    from poise.loops.augmented_estimator import AugmentedEstimator
    from poise.loops.consistent_calibration import ConsistentCalibration, consistent_calibration
    from poise.loops.contraction import allowed_ratio, contraction_factor
    from poise.loops.correctors import IdealMixture, Projection, Reject, nearest_reference
    from poise.loops.feedback_bound import bound_limit, feedback_bound, human_rows_needed
    from poise.loops.feedback_loop import FeedbackLoop
    from poise.loops.gaussian_generator import ClassConditionalGaussian, GaussianGenerator
    from poise.loops.gaussian_mixture_theory import AugmentedMixture, gaussian_mixture_theory
    from poise.loops.gaussian_w2 import gaussian_w2, sample_w2
    from poise.loops.label_rules import temperature
    from poise.loops.loop_audit import audit_loop
    from poise.loops.loop_statistics import group_gap, label_share
    from poise.loops.loop_trace import LoopTrace
    from poise.loops.recorded_loops import trace_of_log, trace_of_self_training
    from poise.loops.sample_metrics import (
        corrector_effect,
        diversity,
        duplicate_share,
        loop_metrics,
        two_sample_distance,
    )
    from poise.loops.self_consuming_loop import SelfConsumingLoop

__all__ = [
    "AugmentedEstimator",
    "AugmentedMixture",
    "ClassConditionalGaussian",
    "ConsistentCalibration",
    "FeedbackLoop",
    "GaussianGenerator",
    "IdealMixture",
    "LoopTrace",
    "Projection",
    "Reject",
    "SelfConsumingLoop",
    "allowed_ratio",
    "audit_augmentation",
    "audit_loop",
    "bound_limit",
    "consistent_calibration",
    "contraction_factor",
    "corrector_effect",
    "diversity",
    "duplicate_share",
    "feedback_bound",
    "gaussian_mixture_theory",
    "gaussian_w2",
    "group_gap",
    "human_rows_needed",
    "label_share",
    "loop_metrics",
    "nearest_reference",
    "sample_w2",
    "temperature",
    "trace_of_log",
    "trace_of_self_training",
    "two_sample_distance",
]

lazy_front(__name__)
