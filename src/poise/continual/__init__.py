"""Learning task after task: what an update breaks, when, why, and the cheapest thing that prevents it."""

from typing import TYPE_CHECKING

from poise.tools.lazy_front import lazy_front

if TYPE_CHECKING:
    from poise.continual.evaluation.evaluator import ContinualEvaluator
    from poise.continual.evaluation.gradient_parts import GradientParts, gradient_parts
    from poise.continual.evaluation.history import AccuracyHistory, gap_figure
    from poise.continual.evaluation.metrics import (
        average_accuracy,
        average_anytime_accuracy,
        forgetting,
        gap_depth,
        learning_curve_area,
        min_accuracy,
        recovery_time,
        sample_mean,
        task_mean,
        task_minima,
        windowed_forgetting,
        windowed_plasticity,
        worst_case_accuracy,
    )
    from poise.continual.evaluation.normalized_gap import Gaps, continual_gaps, normalized_gap
    from poise.continual.streams.blurred_boundaries import blurred_boundaries
    from poise.continual.streams.class_incremental import class_incremental
    from poise.continual.streams.domain_incremental import domain_incremental, permuted_pixels, rotate, rotated_images
    from poise.continual.streams.label_swaps import LabelSwapStream
    from poise.continual.streams.random_labels import random_labels
    from poise.continual.streams.task import Task

__all__ = [
    "AccuracyHistory",
    "ContinualEvaluator",
    "Gaps",
    "GradientParts",
    "LabelSwapStream",
    "Task",
    "average_accuracy",
    "average_anytime_accuracy",
    "blurred_boundaries",
    "class_incremental",
    "continual_gaps",
    "domain_incremental",
    "forgetting",
    "gap_depth",
    "gap_figure",
    "gradient_parts",
    "learning_curve_area",
    "min_accuracy",
    "normalized_gap",
    "permuted_pixels",
    "random_labels",
    "recovery_time",
    "rotate",
    "rotated_images",
    "sample_mean",
    "task_mean",
    "task_minima",
    "windowed_forgetting",
    "windowed_plasticity",
    "worst_case_accuracy",
]

lazy_front(__name__)
