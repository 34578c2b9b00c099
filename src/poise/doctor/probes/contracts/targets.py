"""Whether a model can reach its targets at all."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from poise.doctor.probes.probe import Probe
from poise.doctor.tap.graph import op_name, origin, saved
from poise.doctor.tap.user_line import user_line

if TYPE_CHECKING:
    from poise.doctor.tap.loss_call import LossCall
    from poise.doctor.tap.sink import Sink

_MARKS = 2  # different numbers that may mark targets as left out
_REGRESSION = {"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"}
_RANGES = {
    "relu": (0.0, math.inf),
    "softplus": (0.0, math.inf),
    "exp": (0.0, math.inf),
    "abs": (0.0, math.inf),
    "sigmoid": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "logsoftmax": (-math.inf, 0.0),
    "logsigmoid": (-math.inf, 0.0),
    "tanh": (-1.0, 1.0),
}


class TargetProbe(Probe):
    """Events ``target_out_of_range``, ``unreachable_target``, ``targets_ignored``, ``ctc_target_too_long``."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def loss_called(self, sink: Sink, call: LossCall) -> None:
        """Compare targets with what the loss wants and the model can give."""
        if call.function in ("binary_cross_entropy", "binary_cross_entropy_with_logits"):
            self._probabilities(sink, call)
        elif call.function in ("cross_entropy", "nll_loss"):
            self._classes(sink, call)
        elif call.function in _REGRESSION:
            self._reach(sink, call)
        elif call.function == "ctc_loss":
            self._alignment(sink, call)

    def _probabilities(self, sink: Sink, call: LossCall) -> None:
        low, high = _range(call.target)
        # With a weight or without reduction a number outside may mark what is left out.
        may_mark = call.options.get("weight") is not None or call.options.get("reduction") == "none"
        if (low < 0 or high > 1) and not (may_mark and _outside(call.target).numel() <= _MARKS):
            self._tell(sink, "target_out_of_range", call, low=low, high=high, want=[0, 1])

    def _classes(self, sink: Sink, call: LossCall) -> None:
        target = call.target
        if target.is_floating_point() or not target.numel():
            return
        ignored = target == call.options.get("ignore_index", -100)
        if bool(ignored.all()):
            self._tell(sink, "targets_ignored", call, targets=target.numel())
            return
        low, high = _range(target[~ignored])
        classes = call.input.shape[1] if call.input.dim() > 1 else call.input.shape[0]
        if low < 0 or high >= classes:
            self._tell(sink, "target_out_of_range", call, low=low, high=high, want=[0, classes - 1])

    def _reach(self, sink: Sink, call: LossCall) -> None:
        node = origin(call.input)
        low, high = reachable(node)
        if low == -math.inf and high == math.inf:
            return
        target = call.target.detach().float()
        outside = float(((target < low) | (target > high)).float().mean())
        if outside > 0:
            lowest, highest = _range(target)
            facts = {"low": lowest, "high": highest, "want": [_json(low), _json(high)], "share": outside}
            self._tell(sink, "unreachable_target", call, made_by=op_name(node), **facts)

    def _alignment(self, sink: Sink, call: LossCall) -> None:
        frames = torch.as_tensor(call.options["input_lengths"]).cpu().reshape(-1)
        lengths = torch.as_tensor(call.options["target_lengths"]).cpu().reshape(-1)
        needed = lengths + _repeats(call.target.detach().cpu(), lengths)
        too_long = needed > frames
        if bool(too_long.any()):
            worst = int((needed - frames).argmax())
            share = float(too_long.float().mean())
            facts = {"share": share, "frames": int(frames[worst]), "needed": int(needed[worst])}
            self._tell(sink, "ctc_target_too_long", call, **facts)

    def _tell(self, sink: Sink, kind: str, call: LossCall, **facts: Any) -> None:
        if kind in self._told:
            return
        self._told.add(kind)
        sink.event(sink.run_step, kind, {"function": call.function, "source": user_line(), **facts})


def reachable(node: Any) -> tuple[float, float]:
    """Return the lowest and the highest number that the operation of a node can make, as far as it is known."""
    if node is None:
        return -math.inf, math.inf
    name = op_name(node)
    if name == "clamp":
        low, high = saved(node, "min"), saved(node, "max")
    elif name == "clampmin":
        low, high = saved(node, "min"), None
    elif name == "hardtanh":
        low, high = saved(node, "min_val"), saved(node, "max_val")
    else:
        low, high = _RANGES.get(name, (None, None))
    return (
        float(low) if isinstance(low, int | float) else -math.inf,
        float(high) if isinstance(high, int | float) else math.inf,
    )


def _range(numbers: Tensor) -> tuple[float, float]:
    low, high = torch.aminmax(numbers.detach())
    return float(low), float(high)


def _outside(probabilities: Tensor) -> Tensor:
    """Return the different numbers that are no probabilities."""
    numbers = probabilities.detach()
    return numbers[(numbers < 0) | (numbers > 1)].unique()


def _json(bound: float) -> float | None:
    return bound if math.isfinite(bound) else None


def _repeats(targets: Tensor, lengths: Tensor) -> Tensor:
    """Count equal neighbours in each target: between them CTC needs a blank."""
    rows = targets.split(lengths.tolist()) if targets.dim() == 1 else targets
    counts = [
        int((row[1:n] == row[: n - 1]).sum()) if n > 1 else 0 for row, n in zip(rows, lengths.tolist(), strict=True)
    ]
    return torch.tensor(counts, dtype=lengths.dtype)
