"""Learning task after task: what an update breaks, when, why, and the cheapest thing that prevents it."""

from typing import TYPE_CHECKING

from poise.tools.lazy_front import lazy_front

if TYPE_CHECKING:
    from poise.continual.evaluation.averaging_lag import averaging_lag
    from poise.continual.evaluation.evaluator import ContinualEvaluator
    from poise.continual.evaluation.gradient_parts import GradientParts, gradient_parts
    from poise.continual.evaluation.history import AccuracyHistory
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
    from poise.continual.evaluation.report import evaluation_report, gap_figure
    from poise.continual.heads.class_mean_init import class_mean_init_
    from poise.continual.heads.find_head import find_head, head_inputs
    from poise.continual.heads.grow_head import grow_head
    from poise.continual.heads.lora import LoRALinear, inject_lora, merge_lora_
    from poise.continual.replay.class_balanced import ClassBalancedBuffer
    from poise.continual.replay.reservoir import ReservoirBuffer
    from poise.continual.streams.blurred_boundaries import blurred_boundaries
    from poise.continual.streams.class_incremental import class_incremental
    from poise.continual.streams.domain_incremental import domain_incremental, permuted_pixels, rotate, rotated_images
    from poise.continual.streams.label_swaps import LabelSwapStream
    from poise.continual.streams.random_labels import random_labels
    from poise.continual.streams.task import Task
    from poise.continual.update_audit import audit_update
    from poise.continual.update_audit.rehearsal import rehearse

__all__ = [
    "AccuracyHistory",
    "ClassBalancedBuffer",
    "ContinualEvaluator",
    "Gaps",
    "GradientParts",
    "LabelSwapStream",
    "LoRALinear",
    "ReservoirBuffer",
    "Task",
    "audit_update",
    "average_accuracy",
    "average_anytime_accuracy",
    "averaging_lag",
    "blurred_boundaries",
    "class_incremental",
    "class_mean_init_",
    "continual_gaps",
    "domain_incremental",
    "evaluation_report",
    "find_head",
    "forgetting",
    "gap_depth",
    "gap_figure",
    "gradient_parts",
    "grow_head",
    "head_inputs",
    "inject_lora",
    "learning_curve_area",
    "merge_lora_",
    "min_accuracy",
    "normalized_gap",
    "permuted_pixels",
    "random_labels",
    "recovery_time",
    "rehearse",
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
