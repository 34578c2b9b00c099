"""Maps, flows and optimizers as dynamical systems: fixed points, what they attract, and where stability ends."""

from poise.dynamics.catalytic_pore import CatalyticPore, reversible_reaction
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
from poise.dynamics.lyapunov_exponent import LyapunovEstimate, lyapunov_exponent, lyapunov_of_product
from poise.dynamics.map import Map
from poise.dynamics.non_normality import NonNormality
from poise.dynamics.optimizer_map import OptimizerMap, optimizer_map
from poise.dynamics.smoothness import Smoothness, check_smoothness
from poise.dynamics.stability import StabilityReport, stability
from poise.dynamics.system import System, central_difference

__all__ = [
    "CatalyticPore",
    "EdgeDistance",
    "FixedPoint",
    "Flow",
    "LyapunovEstimate",
    "Map",
    "NonNormality",
    "NotConverged",
    "OptimizerMap",
    "RateFit",
    "Smoothness",
    "StabilityReport",
    "System",
    "central_difference",
    "check_smoothness",
    "decay_rate",
    "distance_to_edge",
    "edge",
    "find_fixed_point",
    "integrate",
    "lyapunov_exponent",
    "lyapunov_of_product",
    "momentum_edge",
    "nesterov_edge",
    "optimizer_map",
    "reversible_reaction",
    "sam_edge",
    "sam_normalized",
    "stability",
]
