"""Path norm: a size of a network that rescaling its units does not change."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from poise.nn.diagonal_linear import DiagonalLinear

HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity)
_TRANSPARENT = (nn.Flatten, nn.Unflatten, nn.Dropout, nn.AlphaDropout)


@torch.no_grad()
def path_norm(module: nn.Module) -> float:
    r"""Return the path norm of a network.

    Of a two-layer network :math:`\sum_j a_j\,\mathrm{relu}(w_j \cdot x)` it is :math:`\sum_j |a_j| |w_j|_2`. With more
    layers, the sum over all paths from a unit of the first layer to an output of the product of absolute weights, each
    times the Euclidean length of the first unit's weights. A bias counts as the weight of an input that is always 1. Of
    a :class:`DiagonalLinear` it is :math:`\sum_j |\beta_j|`, the length of its coefficients in the 1-norm.

    Args:
        module: a ``DiagonalLinear``, or an ``nn.Sequential`` of ``nn.Linear`` layers with positively homogeneous
            activations (ReLU, leaky ReLU).

    Raises:
        TypeError: if ``module`` is something else or holds another layer.
        OverflowError: if the norm of a deep network is larger than the largest float; see :func:`log_path_norm`.

    References:
        Neyshabur, Tomioka and Srebro, "Norm-Based Capacity Control in Neural Networks", COLT 2015, arXiv:1503.00036.
    """
    total, exponent = _path_sum(module)
    try:
        return math.ldexp(total, exponent)
    except OverflowError:
        log = math.log(total) + exponent * math.log(2)
        raise OverflowError(
            f"the path norm is exp({log:.6g}), larger than the largest float; use log_path_norm"
        ) from None


@torch.no_grad()
def log_path_norm(module: nn.Module) -> float:
    """Return the natural logarithm of :func:`path_norm`, which a deep network's norm does not overflow.

    Args:
        module: as for :func:`path_norm`.

    Returns:
        The logarithm; minus infinity where no path has a weight other than zero.

    Raises:
        TypeError: if ``module`` is something else or holds another layer.
    """
    total, exponent = _path_sum(module)
    return math.log(total) + exponent * math.log(2) if total else -math.inf


def _path_sum(module: nn.Module) -> tuple[float, int]:
    """The norm as a number and a power of two: products over depth stay in range, and powers of two are exact."""
    if isinstance(module, DiagonalLinear):
        sizes, exponent = _halved(module.weight[0].double().abs(), 0)
        for factor in module.weight[1:].double().abs():
            sizes, exponent = _halved(sizes * factor, exponent)
        return float(sizes.sum()), exponent
    first, *layers = linear_layers(module)
    sizes, exponent = _halved(_row_norms(first), 0)
    for layer in layers:
        sizes = layer.weight.double().abs() @ sizes
        if layer.bias is not None and layer.bias.any():
            above = max(exponent, 0)  # the larger of the two parts decides the common power
            sizes = sizes * 2.0 ** max(exponent - above, -1074) + layer.bias.double().abs() * 2.0 ** max(-above, -1074)
            exponent = above
        sizes, exponent = _halved(sizes, exponent)
    return float(sizes.sum()), exponent


def _halved(sizes: Tensor, exponent: int) -> tuple[Tensor, int]:
    """Divide by the power of two that brings the largest size into [0.5, 1); the exponent takes it up."""
    power = max(math.frexp(float(sizes.max()))[1], -1000)  # 2.0 ** 1024 would not be a float
    return sizes * 2.0**-power, exponent + power


def linear_layers(module: nn.Module) -> list[nn.Linear]:
    """Return the linear layers of a positively homogeneous network, in order.

    Args:
        module: an ``nn.Linear`` or an ``nn.Sequential``.

    Raises:
        TypeError: if it is something else or holds another layer.
    """
    if isinstance(module, nn.Linear):
        return [module]
    if not isinstance(module, nn.Sequential):
        raise TypeError(f"module must be a DiagonalLinear or an nn.Sequential, got {type(module).__name__}")
    found = []
    for name, layer in module.named_children():
        if isinstance(layer, nn.Linear | nn.Sequential):
            found += linear_layers(layer)
        elif not isinstance(layer, HOMOGENEOUS + _TRANSPARENT):
            raise TypeError(f"module must hold linear layers and ReLUs, got {type(layer).__name__} at {name!r}")
    if not found:
        raise TypeError("module must hold a linear layer, got none")
    return found


def _row_norms(layer: nn.Linear) -> torch.Tensor:
    squares = layer.weight.double().square().sum(1)
    return (squares if layer.bias is None else squares + layer.bias.double().square()).sqrt()
