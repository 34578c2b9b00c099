"""Spectra of a loss: curvature operators that never form a matrix, eigenvalues with error bounds, traces, densities."""

from poise.curvature.dense import DenseOperator
from poise.curvature.empirical_fisher import EmpiricalFisher
from poise.curvature.flat import FlatParameters, flatten, unflatten
from poise.curvature.function_operator import FunctionOperator
from poise.curvature.ggn import GGN
from poise.curvature.hessian import Hessian
from poise.curvature.jacobian import per_example_gradients, per_example_jacobians
from poise.curvature.linear_operator import LinearOperator
from poise.curvature.ntk import NTK
from poise.curvature.objective import LossFunction, Objective, Supervised, as_objective

__all__ = [
    "GGN",
    "NTK",
    "DenseOperator",
    "EmpiricalFisher",
    "FlatParameters",
    "FunctionOperator",
    "Hessian",
    "LinearOperator",
    "LossFunction",
    "Objective",
    "Supervised",
    "as_objective",
    "flatten",
    "per_example_gradients",
    "per_example_jacobians",
    "unflatten",
]
