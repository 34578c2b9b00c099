"""What comes out of the layers: scale, dead units, saturation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from poise.doctor.probes.probe import Probe

if TYPE_CHECKING:
    from poise.doctor.tap.sink import Sink
    from poise.doctor.tap.timeline import Timeline

_ELEMENTS = (
    1 << 14
)  # of a larger output the first samples only; of a ReLU's more, because all of them show which units are dead
_UNIT_ELEMENTS = 1 << 18
_INPUTS = 100  # for so many a living unit is hardly zero by chance


class ActivationProbe(Probe):
    """``act_rms[m]`` of every module that returns a tensor, ``act_absmax[m]`` where it is in half precision.

    ``dead_units[m]``: share of a ReLU's units (channels of images, else the last dimension) that were zero for each of
    the last 100 inputs seen, of one sampled batch or several: in a small batch, or behind dropout, many are zero that
    are not dead; 0 before so many inputs were seen. ``saturated[m]``: share of a Tanh's (Hardtanh's) outputs beyond
    0.97, or of a Sigmoid's (Hardsigmoid's) outside [0.03, 0.97]. It is measured of hidden units, those that a weight
    of the same model uses: outputs near 0 and 1 may be right.
    """

    def __init__(self) -> None:
        self._zero_for: dict[tuple[int, str], Tensor] = {}  # by ReLU: inputs since each unit was last above zero
        self._saturated: list[tuple[nn.Module, Tensor]] = []  # of which no weight has used the outputs yet

    def forward(self, sink: Sink, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Measure the output of ``module``."""
        output = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(output, Tensor) or not output.is_floating_point() or output.numel() == 0:
            return
        values = _first_samples(output.detach(), _ELEMENTS)
        norm = torch.linalg.vector_norm(values, dtype=torch.promote_types(values.dtype, torch.float32))
        sink.observe("act_rms", norm / math.sqrt(values.numel()), module)
        if output.dtype in (torch.float16, torch.bfloat16):
            sink.observe("act_absmax", values.abs().amax().float(), module)
        self._note_saturation(sink, module, values)

    def _note_saturation(self, sink: Sink, module: nn.Module, values: Tensor) -> None:
        if isinstance(module, nn.Hardtanh) and module.min_val < 0 < module.max_val:  # ReLU6 is one that begins at 0
            middle, reach = (module.max_val + module.min_val) / 2, (module.max_val - module.min_val) / 2
            self._saturated.append((module, ((values - middle).abs() > 0.97 * reach).float().mean()))
        elif isinstance(module, nn.Tanh):
            self._saturated.append((module, (values.abs() > 0.97).float().mean()))
        elif isinstance(module, nn.Sigmoid | nn.Hardsigmoid):
            self._saturated.append((module, ((values - 0.5).abs() > 0.47).float().mean()))
        elif self._saturated and any(p is not None and p.dim() > 1 for p in module._parameters.values()):
            for hidden, share in self._saturated:
                sink.observe("saturated", share, hidden)
            self._saturated.clear()
        elif any(module is root for root in sink.names.roots):
            self._saturated.clear()

    def after_step(self, sink: Sink, timeline: Timeline) -> None:
        """Forget what no weight has used."""
        self._saturated.clear()

    def rectified(self, sink: Sink, module: nn.Module | None, output: Tensor, site: str) -> None:
        """Measure the output of a ReLU."""
        if output.dim() < 2 or output.numel() == 0:
            return
        values = _first_samples(output.detach(), _UNIT_ELEMENTS)
        unit = 1 if values.dim() >= 4 else values.dim() - 1
        others = [d for d in range(values.dim()) if d != unit]
        zero = values.amax(others) <= 0
        key, before = (id(module), site), self._zero_for.get((id(module), site))
        if before is None or before.shape != zero.shape or before.device != zero.device:
            before = torch.zeros_like(zero, dtype=torch.float32)
        inputs = values.numel() // values.shape[unit]
        self._zero_for[key] = streak = torch.where(zero, before + inputs, 0.0)
        sink.observe("dead_units", (streak >= _INPUTS).float().mean(), module, site)


def _first_samples(output: Tensor, elements: int) -> Tensor:
    if output.numel() <= elements or output.dim() == 0:
        return output
    return output[: max(1, elements * output.shape[0] // output.numel())]
