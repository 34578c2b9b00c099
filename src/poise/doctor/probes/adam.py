"""The second moment by which Adam and similar optimizers divide."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from poise.doctor.probes.probe import Probe
from poise.doctor.probes.segments import Segments, segments_of

if TYPE_CHECKING:
    from poise.doctor.tap.discovery import Names
    from poise.doctor.tap.sink import Sink
    from poise.doctor.tap.timeline import Timeline


@dataclass(frozen=True)
class _Moments:
    """One parameter's gradient and moments, with what corrects their bias."""

    name: str
    parameter: Tensor
    gradient: Tensor
    first: Tensor | None
    second: Tensor
    corrections: tuple[Any, Any]
    eps: float


class AdamProbe(Probe):
    """Four ways in which the second moment v can mislead, per parameter, with v after this step's gradient.

    ``adam_rms[p]`` = sqrt(mean(g^2 / max(v, eps^2))): how large the gradient is compared with v; over matrices only,
    since the rows of an embedding that a batch does not use have no gradient. ``adam_eps_shrink[p]`` = mean of sqrt(v)
    / (sqrt(v) + eps) where g != 0: 1 when eps does not matter. ``adam_bimodality[p]`` = fraction of coordinates with |m
    / sqrt(v)| > 0.8: near 1 when gradients repeat themselves. ``second_moment_stuck``, of all parameters whose v is
    kept in half precision: the fraction of coordinates in which beta2 times v is rounded back to v.

    References:
        Wortsman et al., Stable and low-precision training for large-scale vision-language models, 2023 (RMS).
        Molybog et al., A theory on Adam instability in large-scale machine learning, 2023 (bimodality).
    """

    def __init__(self) -> None:
        self._embeddings: tuple[Names | None, set[int]] = None, set()

    def after_step(self, sink: Sink, timeline: Timeline) -> None:
        """Read gradients and optimizer state."""
        moments = list(_moments(timeline))
        if not moments:
            return
        _emit_stuck(sink, timeline, moments)
        segments, names = segments_of([m.second for m in moments]), [m.name for m in moments]
        g = segments.flatten([m.gradient for m in moments])
        v = segments.flatten([m.second for m in moments]) / segments.spread([m.corrections[1] for m in moments])
        # max(v, eps^2), and no division of zero by zero where eps is zero too.
        floor = segments.spread([max(m.eps**2, 1e-38) for m in moments])
        self._emit_rms(sink, timeline, moments, segments, g.square() / v.clamp_min(floor))
        touched = (g != 0).float()
        root = v.sqrt()
        count = segments.sum(touched)
        shrink = root / (root + segments.spread([max(m.eps, 1e-38) for m in moments]))
        kept = segments.sum(shrink * touched) / count.clamp_min(1)
        # Where no coordinate has a gradient there is nothing for eps to shrink.
        sink.emit(timeline, "adam_eps_shrink", names, torch.where(count > 0, kept, 1.0))
        if all(m.first is not None for m in moments):
            m = segments.flatten([m.first for m in moments])  # type: ignore[misc]
            m = m / segments.spread([m.corrections[0] for m in moments])
            sink.emit(timeline, "adam_bimodality", names, segments.mean((m.abs() > 0.8 * root) * touched))

    def _emit_rms(
        self, sink: Sink, timeline: Timeline, moments: list[_Moments], segments: Segments, ratio: Tensor
    ) -> None:
        embeddings = self._embeddings_of(sink.names)
        matrices = [i for i, m in enumerate(moments) if m.parameter.dim() >= 2 and id(m.parameter) not in embeddings]
        rms = segments.mean(ratio).sqrt()
        sink.emit(timeline, "adam_rms", [moments[i].name for i in matrices], rms[matrices])

    def _embeddings_of(self, names: Names) -> set[int]:
        if self._embeddings[0] is not names:
            modules = (m for root in names.roots for m in root.modules())
            self._embeddings = names, {id(m.weight) for m in modules if isinstance(m, nn.Embedding)}
        return self._embeddings[1]


def _emit_stuck(sink: Sink, timeline: Timeline, moments: list[_Moments]) -> None:
    half = [m.second for m in moments if m.second.dtype in (torch.bfloat16, torch.float16)]
    betas = timeline.optimizer.param_groups[0].get("betas")
    if not half or not isinstance(betas, tuple | list) or not isinstance(betas[1], float):
        return
    stuck = torch.stack([((v * betas[1] == v) & (v > 0)).sum() for v in half]).sum()
    there = torch.stack([(v > 0).sum() for v in half]).sum()
    sink.emit(timeline, "second_moment_stuck", None, [stuck / there.clamp_min(1)])


def _moments(timeline: Timeline) -> Iterator[_Moments]:
    shown = set(timeline.shown_of(range(len(timeline.parameters))))
    device = timeline.parameters[0].device
    position = -1
    for group in timeline.optimizer.param_groups:
        for parameter in group["params"]:
            position += 1
            state = timeline.optimizer.state.get(parameter)
            usable = parameter.grad is not None and not parameter.grad.is_sparse and parameter.device == device
            if position in shown and state and usable:
                moments = _of_parameter(timeline.names[position], parameter, state, group)
                if moments is not None:
                    yield moments


def _of_parameter(name: str, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> _Moments | None:
    second = state.get("exp_avg_sq", state.get("square_avg"))
    if not isinstance(second, Tensor) or second.shape != parameter.shape:
        return None  # Adafactor and similar optimizers keep it factored
    first = state.get("exp_avg")
    first = first if isinstance(first, Tensor) and first.shape == parameter.shape else None
    corrections: tuple[Any, Any] = (1.0, 1.0)
    steps = state.get("step")
    if "exp_avg_sq" in state and "betas" in group and steps is not None:
        beta1, beta2 = group["betas"]
        # A step count on a device (capturable, fused) stays there.
        steps = steps if isinstance(steps, Tensor) and steps.device.type != "cpu" else float(steps)
        corrections = (1 - beta1**steps, 1 - beta2**steps)
    assert parameter.grad is not None
    return _Moments(name, parameter, parameter.grad, first, second, corrections, float(group.get("eps", 1e-8)))
