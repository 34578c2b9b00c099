"""The sharpness that an audit reports: value, error bound, and what a sample of the examples leaves open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from poise.curvature import Hessian, LinearOperator, Preconditioned, eigs, l2_penalty, lanczos, preconditioner
from poise.curvature.eigen.eigs import DENSE
from poise.dynamics.edge_of_stability.ascent import unwrap_sam
from poise.dynamics.training_audit.effort import Effort

_EXACT, _FAST = 1e-3, 1e-2
_LARGE = 1_000_000
_ROUNDING = 30  # units in the last place that a product may be wrong by, relative to the largest eigenvalue


@dataclass(frozen=True, slots=True, eq=False)
class AuditedSharpness:
    """Largest eigenvalue of an operator.

    Attributes:
        value: the eigenvalue.
        error_bound: an eigenvalue of the examples that were used lies this close.
        converged: whether it reached its tolerance; otherwise the largest one may lie above.
        elsewhere: curvature along the same direction on as many other examples; ``None`` if all were used. Averaged
            over samples, the sharpness on all data lies between this and ``value``.
        vector: the direction, of norm 1.
    """

    value: float
    error_bound: float
    converged: bool
    elsewhere: float | None
    vector: Tensor

    @property
    def low(self) -> float:
        """Lower end of what the sharpness on all data can be."""
        least = self.value - self.error_bound
        return least if self.elsewhere is None else min(least, self.elsewhere)

    @property
    def high(self) -> float:
        """Upper end."""
        return self.value + self.error_bound


def audited_sharpness(
    operator: Watched, elsewhere: Watched | None, effort: Effort, generator: torch.Generator
) -> AuditedSharpness:
    """Return the largest eigenvalue of an operator by the Lanczos process.

    Args:
        operator: symmetric.
        elsewhere: the same of other examples.
        effort: most products and most vectors in memory.
        generator: of the start vector.
    """
    if operator.shape[0] <= DENSE:
        found = eigs(operator)
    else:
        tol = _FAST if operator.shape[0] >= _LARGE else _EXACT
        found = lanczos(operator, 1, "LA", tol, None, generator, effort.products, effort.basis)
    v, value = found.vectors[:, 0], float(found.values[0])
    along = None if elsewhere is None else float(v @ elsewhere.matvec(v))
    rounding = _ROUNDING * torch.finfo(operator.precision).eps * abs(value)
    return AuditedSharpness(value, float(found.error_bounds[0]) + rounding, bool(found.converged[0]), along, v)


def is_adaptive(optimizer: Optimizer) -> bool:
    """Whether an optimizer divides the gradient by a diagonal of its own."""
    return not isinstance(unwrap_sam(optimizer)[0], SGD)


def preconditioned_by(hessian: Hessian, optimizer: Optimizer) -> LinearOperator:
    """Return the Hessian between the roots of the optimizer's preconditioner.

    A parameter counts as fixed where its divisor is within rounding of zero beside the largest one, as that of a bias
    before BatchNorm: its curvature would be a rounding error divided by nearly zero.
    """
    divisor = preconditioner(optimizer, hessian.flat)
    largest = divisor[divisor.isfinite()].max()
    inverse_root = divisor.rsqrt().where(divisor > 10 * torch.finfo(divisor.dtype).eps * largest, 0.0)
    return Preconditioned(hessian, inverse_root, l2_penalty(optimizer, hessian.flat))


class Watched(LinearOperator):
    """An operator in float64 with a callback after each product.

    Products are taken in the operator's own precision. The vectors of a solver are in float64: sums over ten million
    entries in float32 lose the symmetry that Lanczos rests on.

    Args:
        operator: any.
        advance: called after each product.
    """

    def __init__(self, operator: LinearOperator, advance: Callable[[], None]) -> None:
        super().__init__(operator.shape, dtype=torch.float64, device=operator.device, symmetric=operator.symmetric)
        self._operator = operator
        self._advance = advance
        self.precision = operator.dtype

    def _matvec(self, v: Tensor) -> Tensor:
        product = self._operator.matvec(v.to(self._operator.dtype))
        self._advance()
        return product.double()
