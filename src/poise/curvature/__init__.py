"""Spectra of a loss: curvature operators that never form a matrix, eigenvalues with error bounds, traces, densities."""

from typing import TYPE_CHECKING

from poise._lazy import attach

if TYPE_CHECKING:
    from poise.curvature.eigen.block_davidson import block_davidson
    from poise.curvature.eigen.eigen_result import EigenResult, Which
    from poise.curvature.eigen.eigs import eigs
    from poise.curvature.eigen.krylov_schur import krylov_schur
    from poise.curvature.eigen.lanczos import lanczos
    from poise.curvature.eigen.ntk_max import ntk_max
    from poise.curvature.eigen.numerical_abscissa import numerical_abscissa
    from poise.curvature.eigen.spectral_norm import spectral_norm
    from poise.curvature.loss.flat import FlatParameters, flatten, unflatten
    from poise.curvature.loss.objective import LossFunction, Objective, Supervised, as_objective
    from poise.curvature.operators.dense import DenseOperator
    from poise.curvature.operators.empirical_fisher import EmpiricalFisher
    from poise.curvature.operators.function_operator import FunctionOperator
    from poise.curvature.operators.ggn import GGN
    from poise.curvature.operators.hessian.hessian import Hessian
    from poise.curvature.operators.jacobian import per_example_gradients, per_example_jacobians
    from poise.curvature.operators.linear_operator import LinearOperator
    from poise.curvature.operators.ntk import NTK
    from poise.curvature.operators.preconditioned import Preconditioned, l2_penalty, preconditioner
    from poise.curvature.trace_estimation.deflated import deflated
    from poise.curvature.trace_estimation.hessian_trace import hessian_trace
    from poise.curvature.trace_estimation.hutch_plus_plus import hutch_plus_plus
    from poise.curvature.trace_estimation.hutchinson import hutchinson
    from poise.curvature.trace_estimation.jacobian_frobenius import jacobian_frobenius
    from poise.curvature.trace_estimation.spectral_density import SpectralDensity, spectral_density
    from poise.curvature.trace_estimation.trace import trace
    from poise.curvature.trace_estimation.trace_estimate import TraceEstimate
    from poise.curvature.trace_estimation.xtrace import xtrace
    from poise.curvature.training.sharpening_rate import sharpening_rate
    from poise.curvature.training.sharpness_tracker import Sharpness, SharpnessTracker

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

attach(__name__)
