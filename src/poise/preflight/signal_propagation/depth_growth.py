"""How signals and gradients grow over depth, the prediction of theory, and where the range of a number format ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from poise.nn.meanfield import MeanField, relu_resnet
from poise.preflight.signal_propagation.signal_propagation import SignalPropagation, Unit, is_weight_layer

FORMATS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_STEADY = 1.4  # growth of the logarithm over the whole depth (a factor of 4) below which nothing is extrapolated

_FEWEST = 4
"""Blocks from which growth is extrapolated beyond the model's own depth."""


@dataclass(frozen=True, slots=True)
class DepthGrowth:
    """Growth over depth.

    Attributes:
        forward_slope: least-squares slope of the logarithm of the mean square of the outputs, per block.
        backward_slope: the same of the squared norm of the gradient, per block on the way back.
        gradient_ratio: norm of the gradient at the first block over that at the last; ``None`` without gradients.
        expected: what theory predicts for the weights, ``None`` where it does not apply.
        gain: geometric mean of the gains of the blocks' Jacobians; ``None`` without any.
    """

    forward_slope: float | None
    backward_slope: float | None
    gradient_ratio: float | None
    expected: ExpectedGrowth | None
    gain: float | None


@dataclass(frozen=True, slots=True)
class ExpectedGrowth:
    """What an infinitely wide network with these weights would do.

    Attributes:
        theory: its name.
        q: mean square of the outputs, block by block, beginning from the measured first.
        slope: of its logarithm, per block.
    """

    theory: str
    q: Float[np.ndarray, " depth"]
    slope: float


@dataclass(frozen=True, slots=True)
class FailingDepth:
    """The block at which the range of a number format ends.

    Attributes:
        format: name of the format.
        what: ``"overflows"`` (the signal) or ``"vanishes"`` (the gradient).
        depth: number of the block, from 1; beyond the model's own depth it is extrapolated with the slope.
        name: of the block; ``None`` if extrapolated.
        limit: largest (smallest) number of the format.
    """

    format: str
    what: str
    depth: int
    name: str | None
    limit: float


def depth_growth(model: nn.Module, passed: SignalPropagation) -> DepthGrowth:
    """Return how signals and gradients grow over the blocks.

    Args:
        model: the model.
        passed: what was measured.
    """
    units = passed.units
    norms = [unit.grad_norm for unit in units]
    back = _slope([math.nan if g is None else g * g for g in norms])
    ends = [g for g in norms if g is not None]
    ratio = ends[0] / ends[-1] if len(ends) > 1 and ends[-1] > 0 else None
    expected = _residual_theory(model, passed) or _chain_theory(model, passed)
    forward = _slope([unit.q for unit in units])
    gains = [unit.gain for unit in units if unit.gain]
    gain = math.exp(sum(map(math.log, gains)) / len(gains)) if gains else None
    return DepthGrowth(forward, None if back is None else -back, ratio, expected, gain)


def failing_depths(units: Sequence[Unit], growth: DepthGrowth) -> list[FailingDepth]:
    """Return where the range of each format ends: the signal overflows, or the gradient underflows.

    Depths beyond the model's are extrapolated where the growth is steady, up to a hundred times the model's depth.

    Args:
        units: the blocks.
        growth: of their outputs.
    """
    found = []
    for name, dtype in FORMATS.items():
        info = torch.finfo(dtype)
        largest, smallest = float(info.max), float(info.smallest_normal) * float(info.eps)
        over = next((i for i, unit in enumerate(units) if not unit.absmax <= largest), None)
        if over is not None:
            found.append(FailingDepth(name, "overflows", over + 1, units[over].name, largest))
        elif (ahead := _extrapolated_depth(growth.forward_slope, units[-1].absmax, largest, len(units))) is not None:
            found.append(FailingDepth(name, "overflows", ahead, None, largest))
        # Gradients vanish on the way back: the last block at which they are too small comes first.
        gone = [i for i, unit in enumerate(units) if _too_small(unit, smallest)]
        if gone:
            found.append(FailingDepth(name, "vanishes", gone[-1] + 1, units[gone[-1]].name, smallest))
    return found


def _too_small(unit: Unit, smallest: float) -> bool:
    """Whether a gradient has vanished; one that is exactly zero has only where the format cannot hold less."""
    if unit.grad_rms is None:
        return False
    return unit.grad_rms < smallest and (unit.grad_rms > 0 or unit.dtype in (torch.float16, torch.bfloat16))


def _extrapolated_depth(slope: float | None, value: float, limit: float, depth: int) -> int | None:
    if slope is None or depth < _FEWEST or slope * depth < _STEADY or not 0 < value <= limit:
        return None
    more = math.ceil((math.log(limit) - math.log(value)) / (slope / 2))
    return depth + more if more <= 99 * depth else None


def _slope(values: Sequence[float]) -> float | None:
    """Slope of the logarithms over the index; ``None`` from fewer than two positive numbers."""
    y = np.asarray(values, dtype=float)
    kept = np.flatnonzero(np.isfinite(y) & (y > 0))
    return float(np.polyfit(kept, np.log(y[kept]), 1)[0]) if len(kept) > 1 else None


def _residual_theory(model: nn.Module, passed: SignalPropagation) -> ExpectedGrowth | None:
    """The mean field of residual ReLU networks, where every block is one ReLU, one map and one sum."""
    kinds = [kind for kind, _ in passed.events]
    names = [name for _, name in passed.events]
    ends = [i for i, kind in enumerate(kinds) if kind == "unit"]
    if not passed.are_blocks or len(ends) < 2:
        return None
    gains, start = [], 0
    for end in ends:
        inside = [i for i in range(start, end) if names[i].startswith(f"{names[end]}.") or names[i] == names[end]]
        if [kinds[i] for i in inside] != ["relu", "weight", "sum"]:
            return None
        factor = getattr(model.get_submodule(names[end]), "scale", torch.ones(()))
        gain = _gain(model, names[inside[1]])
        if gain is None or not isinstance(factor, torch.Tensor) or factor.numel() != 1:
            return None
        gains.append(float(factor) ** 2 * gain)
        start = end + 1
    field: MeanField = relu_resnet(
        [math.sqrt(g / 2) for g in gains], sigma_w2=2.0, q0=passed.residuals[0].shortcut ** 2
    )
    q = field.q[1:].numpy()
    return ExpectedGrowth("mean field of residual ReLU networks", q, _slope(q.tolist()) or 0.0)


def _chain_theory(model: nn.Module, passed: SignalPropagation) -> ExpectedGrowth | None:
    """Layers with a ReLU between them: the mean square is multiplied by half the variance of weights times fan-in."""
    if passed.are_blocks or len(passed.units) < 2 or passed.residuals:
        return None
    weights = [name for kind, name in passed.events if kind == "weight"]
    pattern = [kind for kind, _ in passed.events if kind != "unit"]
    if pattern not in (["weight", "relu"] * len(weights), (["weight", "relu"] * len(weights))[:-1]):
        return None
    gains = [_gain(model, name) for name in weights[1:]]
    if any(gain is None for gain in gains):
        return None
    growth = np.cumsum([math.log(gain / 2) for gain in gains if gain])
    q = passed.units[0].q * np.exp(np.concatenate([[0.0], growth]))
    return ExpectedGrowth("mean field of ReLU networks", q, _slope(q.tolist()) or 0.0)


def _gain(model: nn.Module, name: str) -> float | None:
    """Mean square of the weights times the fan-in, for a linear layer with (nearly) no bias."""
    layer = model.get_submodule(name)
    if not isinstance(layer, nn.Linear) or not is_weight_layer(layer):
        return None
    gain = float(layer.weight.detach().double().square().mean()) * layer.in_features
    biased = layer.bias is not None and float(layer.bias.detach().double().square().mean()) > 1e-2 * gain
    return None if biased or not gain > 0 else gain
