"""Maps, flows and optimizers as dynamical systems: fixed points, what they attract, and where stability ends."""

from typing import TYPE_CHECKING

from poise._lazy import attach

if TYPE_CHECKING:
    from poise.dynamics.audit import audit
    from poise.dynamics.edge_of_stability.edge import (
        EdgeDistance,
        distance_to_edge,
        edge,
        momentum_edge,
        nesterov_edge,
        sam_edge,
        sam_normalized,
    )
    from poise.dynamics.gradient_flow.gfs_monitor import GFSReading, GFSSharpness, stability_regime
    from poise.dynamics.gradient_flow.gradient_flow_limit import FlowResult, gradient_flow_limit
    from poise.dynamics.gradient_flow.gradient_flow_solution import (
        GradientFlowSolution,
        gfs_sharpness,
        gradient_flow_solution,
    )
    from poise.dynamics.models.catalytic_pore import CatalyticPore, reversible_reaction
    from poise.dynamics.models.quadratic_model import QuadraticModel, expected_ntk_acceleration
    from poise.dynamics.models.quadratic_surrogate import QuadraticSurrogate
    from poise.dynamics.models.scalar_network import STABLE_SET_LIMIT, ScalarNetwork
    from poise.dynamics.models.squared_regression import SquaredRegression
    from poise.dynamics.models.starvation import (
        decoupled_fixed_point,
        ntk_features,
        responses,
        ridge_fixed_point,
        sensitivity,
    )
    from poise.dynamics.models.trajectory import Trajectory, classify
    from poise.dynamics.sgd_noise.batch_noise import batch_noise_section, sgd_lyapunov_exponent
    from poise.dynamics.sgd_noise.coherence import Coherence, coherence
    from poise.dynamics.sgd_noise.critical_lr import critical_lr
    from poise.dynamics.sgd_noise.second_moment_operator import SecondMomentOperator
    from poise.dynamics.sgd_noise.sgd_stability import NotInterpolating, SGDStability, sgd_stability
    from poise.dynamics.systems.decay_rate import RateFit, decay_rate
    from poise.dynamics.systems.fixed_point import FixedPoint, NotConverged, find_fixed_point, integrate
    from poise.dynamics.systems.flow import Flow
    from poise.dynamics.systems.lyapunov_exponent import LyapunovEstimate, lyapunov_exponent, lyapunov_of_product
    from poise.dynamics.systems.map import Map
    from poise.dynamics.systems.non_normality import NonNormality
    from poise.dynamics.systems.optimizer_map import OptimizerMap, optimizer_map
    from poise.dynamics.systems.smoothness import Smoothness, check_smoothness
    from poise.dynamics.systems.stability import stability
    from poise.dynamics.systems.stability_result import Stability
    from poise.dynamics.systems.system import System, central_difference

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
    "Stability",
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

attach(__name__)
