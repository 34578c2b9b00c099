"""An upper bound on the Jacobian of a feed-forward sub-layer behind a normalisation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from poise.preflight.signal_propagation.signal_propagation import SignalPropagation


@dataclass(frozen=True, slots=True)
class SublayerBound:
    r"""The bound of one sub-layer :math:`x + W_2 F(W_1 \mathrm{norm}(x))`.

    Attributes:
        name: of the module that adds branch and shortcut.
        branch: :math:`g \sigma_1 \sigma_2 (\sqrt d + \sqrt{d_{ff}})^2`, an estimate of the norm of the branch's
            Jacobian at an input of standard deviation 1; g is the largest gain of the normalisation times the factor on
            the branch.
        amplification: of the normalisation, one over the standard deviation of its input.
        bound: :math:`1 + \mathrm{branch} \cdot \mathrm{amplification}`; in place of 1, the factor on the shortcut.
    """

    name: str
    branch: float
    amplification: float
    bound: float


def sublayer_bounds(model: nn.Module, passed: SignalPropagation) -> list[SublayerBound]:
    r"""Return the bounds of all sub-layers that are a normalisation, two linear layers and a residual sum.

    A matrix of d by e independent entries of standard deviation :math:`\sigma` has a spectral norm of about
    :math:`\sigma (\sqrt d + \sqrt e)`; the function between the two is taken to have a slope of at most 1 (ReLU has;
    that of GELU reaches 1.13). Gated and attention sub-layers are left out.

    Args:
        model: the model.
        passed: what was measured.

    References:
        Takase et al., "Spike No More", COLM 2025, arXiv:2312.16903.
    """
    found, inside = [], list[tuple[str, str]]()
    norms, sums = iter(passed.norms), iter(passed.residuals)
    norm = None
    for kind, name in passed.events:
        if kind == "sum":
            residual = next(sums)
            layers = [n for k, n in inside if k == "weight"]
            if norm is not None and [k for k, _ in inside if k != "relu"] == ["norm", "weight", "weight"]:
                branch = _branch(model, norm.name, *layers)
                size = passed.output_rms.get(layers[1], 0.0)
                if branch is not None and size > 0:
                    branch *= residual.branch / size
                    bound = residual.gain + branch * norm.amplification
                    found.append(SublayerBound(residual.name, branch, norm.amplification, bound))
            inside = []
        elif kind != "unit":
            inside.append((kind, name))
            norm = next(norms) if kind == "norm" else norm
    return found


def _branch(model: nn.Module, norm: str, first: str, second: str) -> float | None:
    one, two = model.get_submodule(first), model.get_submodule(second)
    if not isinstance(one, nn.Linear) or not isinstance(two, nn.Linear) or one.in_features != two.out_features:
        return None
    if one.out_features != two.in_features:
        return None
    gain = getattr(model.get_submodule(norm), "weight", None)
    largest = 1.0 if gain is None else float(gain.detach().abs().max())
    sigma = [float(layer.weight.detach().double().square().mean().sqrt()) for layer in (one, two)]
    return largest * sigma[0] * sigma[1] * (math.sqrt(one.in_features) + math.sqrt(one.out_features)) ** 2
