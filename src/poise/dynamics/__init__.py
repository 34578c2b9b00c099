"""Maps, flows and optimizers as dynamical systems: fixed points, what they attract, and where stability ends."""

from typing import TYPE_CHECKING

from poise.tools.lazy_front import lazy_front

if TYPE_CHECKING:
    from poise.dynamics.audit import audit
    from poise.dynamics.batch_noise import batch_noise_section, sgd_lyapunov_exponent
    from poise.dynamics.catalytic_pore import CatalyticPore, reversible_reaction
    from poise.dynamics.coherence import Coherence, coherence
    from poise.dynamics.critical_lr import critical_lr
    from poise.dynamics.decay_rate import RateFit, decay_rate
    from poise.dynamics.edge import (
        EdgeDistance,
        distance_to_edge,
        edge,
        momentum_edge,
        nesterov_edge,
        sam_edge,
        sam_normalized,
    )
    from poise.dynamics.fixed_point import FixedPoint, NotConverged, find_fixed_point, integrate
    from poise.dynamics.flow import Flow
    from poise.dynamics.gfs_monitor import GFSReading, GFSSharpness, stability_regime
    from poise.dynamics.gradient_flow_limit import FlowResult, gradient_flow_limit
    from poise.dynamics.gradient_flow_solution import GradientFlowSolution, gfs_sharpness, gradient_flow_solution
    from poise.dynamics.lyapunov_exponent import LyapunovEstimate, lyapunov_exponent, lyapunov_of_product
    from poise.dynamics.map import Map
    from poise.dynamics.non_normality import NonNormality
    from poise.dynamics.optimizer_map import OptimizerMap, optimizer_map
    from poise.dynamics.quadratic_model import QuadraticModel, expected_ntk_acceleration
    from poise.dynamics.quadratic_surrogate import QuadraticSurrogate
    from poise.dynamics.scalar_network import STABLE_SET_LIMIT, ScalarNetwork
    from poise.dynamics.second_moment_operator import SecondMomentOperator
    from poise.dynamics.sgd_stability import NotInterpolating, SGDStability, sgd_stability
    from poise.dynamics.smoothness import Smoothness, check_smoothness
    from poise.dynamics.squared_regression import SquaredRegression
    from poise.dynamics.stability import StabilityReport, stability
    from poise.dynamics.starvation import (
        decoupled_fixed_point,
        ntk_features,
        responses,
        ridge_fixed_point,
        sensitivity,
    )
    from poise.dynamics.system import System, central_difference
    from poise.dynamics.trajectory import Trajectory, classify

__all__ = [
    "STABLE_SET_LIMIT",
    "CatalyticPore",
    "Coherence",
    "EdgeDistance",
    "FixedPoint",
    "Flow",
    "FlowResult",
    "GFSReading",
    "GFSSharpness",
    "GradientFlowSolution",
    "LyapunovEstimate",
    "Map",
    "NonNormality",
    "NotConverged",
    "NotInterpolating",
    "OptimizerMap",
    "QuadraticModel",
    "QuadraticSurrogate",
    "RateFit",
    "SGDStability",
    "ScalarNetwork",
    "SecondMomentOperator",
    "Smoothness",
    "SquaredRegression",
    "StabilityReport",
    "System",
    "Trajectory",
    "audit",
    "batch_noise_section",
    "central_difference",
    "check_smoothness",
    "classify",
    "coherence",
    "critical_lr",
    "decay_rate",
    "decoupled_fixed_point",
    "distance_to_edge",
    "edge",
    "expected_ntk_acceleration",
    "find_fixed_point",
    "gfs_sharpness",
    "gradient_flow_limit",
    "gradient_flow_solution",
    "integrate",
    "lyapunov_exponent",
    "lyapunov_of_product",
    "momentum_edge",
    "nesterov_edge",
    "ntk_features",
    "optimizer_map",
    "responses",
    "reversible_reaction",
    "ridge_fixed_point",
    "sam_edge",
    "sam_normalized",
    "sensitivity",
    "sgd_lyapunov_exponent",
    "sgd_stability",
    "stability",
    "stability_regime",
]

lazy_front(__name__)
