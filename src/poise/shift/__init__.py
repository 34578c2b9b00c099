"""Models after deployment: whether they are still good without labels, which shift matters, and what to keep."""

from typing import TYPE_CHECKING

from poise.tools.lazy_front import lazy_front

if TYPE_CHECKING:
    from poise.shift.additive.additive_regressor import AdditiveRegressor, GaussianKernel, LinearKernel
    from poise.shift.additive.block_variance import BlockVariance, feature_variance
    from poise.shift.additive.shift_budget import BlockBudget, ShiftBudget, shift_budget
    from poise.shift.deployment_audit import audit_deployment
    from poise.shift.estimation.baselines import (
        AverageThresholdedConfidence,
        ConstantPerformance,
        DifferenceOfConfidence,
        ImportanceWeighting,
        ReverseTesting,
    )
    from poise.shift.estimation.cbpe import CBPE, MCBPE, WeightedCBPE
    from poise.shift.estimation.chunks import ByNumber, BySize, ByTime
    from poise.shift.estimation.estimates import ChunkEstimate, MetricEstimate
    from poise.shift.estimation.estimator import PerformanceEstimator
    from poise.shift.estimation.metrics import METRICS, Metric, SampledMetric, cost_per_row
    from poise.shift.estimation.thresholds import ConstantThreshold, DeviationThreshold, IntervalThreshold
    from poise.shift.minimax.minimax_selector import MinimaxSelector
    from poise.shift.minimax.search import MinimaxResult, minimax_search
    from poise.shift.minimax.stable_graph import StableGraph, SubsetClass
    from poise.shift.minimax.tabular_model import TabularModel
    from poise.shift.monitor.monitor import Monitor

__all__ = [
    "CBPE",
    "MCBPE",
    "METRICS",
    "AdditiveRegressor",
    "AverageThresholdedConfidence",
    "BlockBudget",
    "BlockVariance",
    "ByNumber",
    "BySize",
    "ByTime",
    "ChunkEstimate",
    "ConstantPerformance",
    "ConstantThreshold",
    "DeviationThreshold",
    "DifferenceOfConfidence",
    "GaussianKernel",
    "ImportanceWeighting",
    "IntervalThreshold",
    "LinearKernel",
    "Metric",
    "MetricEstimate",
    "MinimaxResult",
    "MinimaxSelector",
    "Monitor",
    "PerformanceEstimator",
    "ReverseTesting",
    "SampledMetric",
    "ShiftBudget",
    "StableGraph",
    "SubsetClass",
    "TabularModel",
    "WeightedCBPE",
    "audit_deployment",
    "cost_per_row",
    "feature_variance",
    "minimax_search",
    "shift_budget",
]

lazy_front(__name__)
