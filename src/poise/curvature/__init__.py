"""Spectra of a loss: curvature operators that never form a matrix, eigenvalues with error bounds, traces, densities."""

from typing import TYPE_CHECKING

from poise.tools.lazy_front import lazy_front

if TYPE_CHECKING:
    from poise.curvature.block_davidson import block_davidson
    from poise.curvature.deflated import deflated
    from poise.curvature.dense import DenseOperator
    from poise.curvature.eigen_result import EigenResult, Which
    from poise.curvature.eigs import eigs
    from poise.curvature.empirical_fisher import EmpiricalFisher
    from poise.curvature.flat import FlatParameters, flatten, unflatten
    from poise.curvature.function_operator import FunctionOperator
    from poise.curvature.ggn import GGN
    from poise.curvature.hessian import Hessian
    from poise.curvature.hessian_trace import hessian_trace
    from poise.curvature.hutch_plus_plus import hutch_plus_plus
    from poise.curvature.hutchinson import hutchinson
    from poise.curvature.jacobian import per_example_gradients, per_example_jacobians
    from poise.curvature.jacobian_frobenius import jacobian_frobenius
    from poise.curvature.krylov_schur import krylov_schur
    from poise.curvature.lanczos import lanczos
    from poise.curvature.linear_operator import LinearOperator
    from poise.curvature.ntk import NTK
    from poise.curvature.ntk_max import ntk_max
    from poise.curvature.numerical_abscissa import numerical_abscissa
    from poise.curvature.objective import LossFunction, Objective, Supervised, as_objective
    from poise.curvature.preconditioned import Preconditioned, l2_penalty, preconditioner
    from poise.curvature.sharpening_rate import sharpening_rate
    from poise.curvature.sharpness_tracker import Sharpness, SharpnessTracker
    from poise.curvature.spectral_density import SpectralDensity, spectral_density
    from poise.curvature.spectral_norm import spectral_norm
    from poise.curvature.trace import trace
    from poise.curvature.trace_estimate import TraceEstimate
    from poise.curvature.xtrace import xtrace

__all__ = [
    "GGN",
    "NTK",
    "DenseOperator",
    "EigenResult",
    "EmpiricalFisher",
    "FlatParameters",
    "FunctionOperator",
    "Hessian",
    "LinearOperator",
    "LossFunction",
    "Objective",
    "Preconditioned",
    "Sharpness",
    "SharpnessTracker",
    "SpectralDensity",
    "Supervised",
    "TraceEstimate",
    "Which",
    "as_objective",
    "block_davidson",
    "deflated",
    "eigs",
    "flatten",
    "hessian_trace",
    "hutch_plus_plus",
    "hutchinson",
    "jacobian_frobenius",
    "krylov_schur",
    "l2_penalty",
    "lanczos",
    "ntk_max",
    "numerical_abscissa",
    "per_example_gradients",
    "per_example_jacobians",
    "preconditioner",
    "sharpening_rate",
    "spectral_density",
    "spectral_norm",
    "trace",
    "unflatten",
    "xtrace",
]

lazy_front(__name__)
