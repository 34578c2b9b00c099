"""What an infinitely wide residual ReLU network does to variances, correlations and gradients, by depth."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class MeanField(NamedTuple):
    """Values at every depth, from the first layer's output (index 0) to the last branch's; in float64.

    Where growth leaves the range of floats, ``q``, ``ntk`` and ``gradient`` are infinite; the logarithms and ratios
    beside them, and ``c``, hold at any depth.
    """

    q: Float[Tensor, " depth"]
    """Variance of a unit."""
    c: Float[Tensor, " depth"]
    """Correlation of a unit for two inputs."""
    ntk: Float[Tensor, " depth"]
    """Neural tangent kernel of the two inputs."""
    gradient: Float[Tensor, " depth"]
    """Squared norm of the gradient relative to that at the last depth."""
    log_q: Float[Tensor, " depth"]
    """Natural logarithm of ``q``."""
    ntk_over_q: Float[Tensor, " depth"]
    """``ntk / q``, which grows at most as the number of branches."""
    log_gradient: Float[Tensor, " depth"]
    """Natural logarithm of ``gradient``."""


def relu_resnet(
    lambdas: Float[Tensor, " branch"] | list[float],
    sigma_w2: float = 2.0,
    sigma_b2: float = 0.0,
    q0: float = 1.0,
    c0: float = 0.5,
) -> MeanField:
    r"""Return the mean-field recursions of :math:`y_l = y_{l-1} + \lambda_l (W_l \,\mathrm{relu}(y_{l-1}) + b_l)`.

    With :math:`a = \sigma_w^2 / 2`, :math:`f(c) = (c \arcsin c + \sqrt{1 - c^2}) / \pi + c / 2` and both inputs of
    the same variance:

    .. math:: q_l = q_{l-1} + \lambda_l^2 (a q_{l-1} + \sigma_b^2), \qquad
        q_l c_l = q_{l-1} c_{l-1} + \lambda_l^2 \Psi_l, \quad \Psi_l = a q_{l-1} f(c_{l-1}) + \sigma_b^2

    .. math:: T_l = T_{l-1} + \lambda_l^2 (\Psi_l + a f'(c_{l-1}) T_{l-1}), \qquad T_0 = q_0 c_0

    Gradients grow by :math:`1 + \lambda_l^2 a` a branch, going back. The variance is kept as its logarithm, the kernel
    and the biases relative to it, so that nothing overflows on the way.

    Args:
        lambdas: the branches' factors, e.g. :func:`residual_scales`.
        sigma_w2: variance of the weights times the fan-in.
        sigma_b2: variance of the biases.
        q0: variance of the stream before the first branch.
        c0: correlation of the two inputs there.

    Returns:
        A :class:`MeanField` with one more entry than there are branches.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Hayou et al., 2021, arXiv:2010.12859. Cho and Saul, "Kernel Methods for Deep Learning", NeurIPS 2009.

    Example:
        >>> round(relu_resnet([1.0] * 10).q[-1].item())
        1024
    """
    factors = torch.as_tensor(lambdas, dtype=torch.float64)
    if factors.ndim != 1 or not len(factors) or not factors.square().isfinite().all():
        raise ValueError(f"lambdas must be a vector of numbers with finite squares, at least one, got {lambdas!r}")
    if not sigma_w2 > 0 or not sigma_b2 >= 0 or not q0 > 0:
        raise ValueError(f"sigma_w2 and q0 must be positive, sigma_b2 at least 0, got {sigma_w2}, {q0}, {sigma_b2}")
    if not -1 <= c0 <= 1:
        raise ValueError(f"c0 must lie in [-1, 1], got {c0!r}")
    a = sigma_w2 / 2
    q, log_q, c, ntk = float(q0), math.log(q0), c0, c0  # the kernel relative to q
    rows = [(q, log_q, c, ntk)]
    for square in factors.square().tolist():
        bias = sigma_b2 / q
        psi = a * arc_cosine(c) + bias
        growth = 1 + square * (a + bias)
        ntk = (ntk + square * (psi + a * arc_cosine_slope(c) * ntk)) / growth
        c = min(1.0, max(-1.0, (c + square * psi) / growth))  # rounding only
        q, log_q = q * growth, log_q + math.log(growth)
        rows.append((q, log_q, c, ntk))
    variances, logs, correlations, ratios = torch.tensor(rows, dtype=torch.float64).unbind(1)
    steps = torch.log1p(a * factors.square())
    back = torch.cat([steps.flip(0).cumsum(0).flip(0), steps.new_zeros(1)])
    return MeanField(variances, correlations, variances * ratios, back.exp(), logs, ratios, back)


def arc_cosine(c: float) -> float:
    r"""Return :math:`f(c) = 2 E[\mathrm{relu}(u)\,\mathrm{relu}(v)]` of standard normal u, v with correlation c."""
    return (c * math.asin(c) + math.sqrt(1 - c * c)) / math.pi + c / 2


def arc_cosine_slope(c: float) -> float:
    r"""Return :math:`f'(c) = \tfrac12 + \arcsin(c) / \pi`."""
    return 0.5 + math.asin(c) / math.pi
