"""Path norm: a size of a network that rescaling its units does not change."""

from __future__ import annotations

import torch
from torch import nn

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

    References:
        Neyshabur, Tomioka and Srebro, "Norm-Based Capacity Control in Neural Networks", COLT 2015, arXiv:1503.00036.
    """
    if isinstance(module, DiagonalLinear):
        return module.coefficients().abs().sum().item()
    layers = linear_layers(module)
    sizes = _row_norms(layers[0])
    for layer in layers[1:]:
        sizes = layer.weight.double().abs() @ sizes
        if layer.bias is not None:
            sizes = sizes + layer.bias.double().abs()
    return sizes.sum().item()


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
