"""Logits, probabilities, log-probabilities: which of them a loss is given, and which it wants."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from poise.doctor.probes.probe import Probe
from poise.doctor.tap.graph import constant_factor, op_name, origin, saved_dimension
from poise.doctor.tap.user_line import user_line

if TYPE_CHECKING:
    from poise.doctor.tap.loss_call import LossCall
    from poise.doctor.tap.sink import Sink

_CALLS, _NUMBERS = 3, 64  # seen in so many calls and numbers, a sum of 1 is no accident
_NORMALISED = 0.05  # a log-probability is at most so far from one that sums to 1
_SQUASHING = {"sigmoid", "softmax", "hardsigmoid"}
# A sigmoid that is written by hand, or within compiled code: then the numbers tell.
_UNKNOWN = {"nonetype", "compiledfunction", "reciprocal", "div"}


class LossInputProbe(Probe):
    """Events ``sigmoid_twice``, ``softmax_twice``, ``softmax_over_batch``, ``nll_input``, ``kl_div_input``.

    What the graph says of the operation that made the input counts at once; where it says nothing, the numbers of
    the first calls do.
    """

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._hits: Counter[str] = Counter()
        self._misses: set[str] = set()

    def loss_called(self, sink: Sink, call: LossCall) -> None:
        """Examine the input of a classification loss."""
        check = {
            "binary_cross_entropy_with_logits": self._binary,
            "cross_entropy": self._cross_entropy,
            "nll_loss": self._nll,
            "kl_div": self._kl,
        }.get(call.function)
        if check is not None:
            check(sink, call)

    def _binary(self, sink: Sink, call: LossCall) -> None:
        factor, node = constant_factor(origin(call.input))
        made_by = op_name(node)
        if made_by in _SQUASHING and factor == 1:
            self._tell(sink, "sigmoid_twice", call, made_by)
        elif made_by in _UNKNOWN and self._repeats("sigmoid_twice", _within_unit(call.input), call):
            self._tell(sink, "sigmoid_twice", call, "")

    def _cross_entropy(self, sink: Sink, call: LossCall) -> None:
        node = origin(call.input)
        made_by = op_name(node)
        if made_by in ("softmax", "logsoftmax") and _is_over_batch(node, call.input):
            self._tell(sink, "softmax_over_batch", call, made_by)
        elif made_by in _SQUASHING:
            self._tell(sink, "softmax_twice", call, made_by)
        elif self._repeats("softmax_twice", _sums_to_one(call.input), call):
            self._tell(sink, "softmax_twice", call, "")

    def _nll(self, sink: Sink, call: LossCall) -> None:
        node = origin(call.input)
        made_by = op_name(node)
        if made_by == "logsoftmax" and _is_over_batch(node, call.input):
            self._tell(sink, "softmax_over_batch", call, made_by)
        elif self._repeats("nll_input", _is_not_normalised(call.input), call):
            given = "probabilities" if _within_unit(call.input) else "logits"
            self._tell(sink, "nll_input", call, made_by, given=given)

    def _kl(self, sink: Sink, call: LossCall) -> None:
        node = origin(call.input)
        if op_name(node) == "logsoftmax" and _is_over_batch(node, call.input) and _are_rows(call):
            self._tell(sink, "softmax_over_batch", call, "logsoftmax")
        # The logarithm of a probability is not above 0, a probability not below it.
        log_target = bool(call.options.get("log_target"))
        wrong = []
        if float(call.input.max()) > 1e-3:
            wrong.append("input")
        low, high = (float(x) for x in torch.aminmax(call.target.detach().float()))
        if (low < -1e-3 and not log_target) or (high > 1e-3 and log_target):
            wrong.append("target")
        if wrong:
            given = "probabilities" if _within_unit(call.input) else "logits"
            self._tell(sink, "kl_div_input", call, op_name(origin(call.input)), wrong=wrong, given=given)

    def _repeats(self, kind: str, hit: bool, call: LossCall) -> bool:
        """Return whether every call so far was a hit, and enough of them were seen."""
        if not hit:
            self._misses.add(kind)
            return False
        self._hits[kind] += 1
        self._hits[kind + ":numbers"] += call.input.numel()
        enough = self._hits[kind] >= _CALLS and self._hits[kind + ":numbers"] >= _NUMBERS
        return enough and kind not in self._misses

    def _tell(self, sink: Sink, kind: str, call: LossCall, made_by: str, **more: Any) -> None:
        if kind in self._told:
            return
        self._told.add(kind)
        classes = call.input.shape[1] if call.input.dim() > 1 else 1
        payload = {"function": call.function, "made_by": made_by, "classes": classes, "source": user_line(), **more}
        sink.event(sink.run_step, kind, payload)


def _within_unit(numbers: Tensor) -> bool:
    low, high = torch.aminmax(numbers.detach().float())
    return bool((low >= 0) & (high <= 1) & (high > low))


def _class_dim(numbers: Tensor) -> int:
    return 1 if numbers.dim() > 1 else 0


def _sums_to_one(numbers: Tensor) -> bool:
    numbers = numbers.detach()
    return _within_unit(numbers) and bool(((numbers.float().sum(_class_dim(numbers)) - 1).abs() < 1e-3).all())


def _is_not_normalised(numbers: Tensor) -> bool:
    total = torch.logsumexp(numbers.detach().float(), _class_dim(numbers))
    return bool(total.isfinite().all()) and float(total.abs().median()) > _NORMALISED


def _are_rows(call: LossCall) -> bool:
    """Return whether the rows of a target are distributions and its columns are none."""
    target = call.target.detach().float()
    target = target.exp() if call.options.get("log_target") else target
    rows, columns = ((target.sum(dim) - 1).abs() < 1e-3 for dim in (1, 0))
    return target.dim() == 2 and bool(rows.all()) and not bool(columns.all())


def _is_over_batch(node: Any, numbers: Tensor) -> bool:
    """Return whether a softmax runs over the examples of a batch in the place of the classes."""
    # Reshaped since, its dimensions are others than those of the loss.
    shape = getattr(node, "_input_metadata", None)
    same = not shape or tuple(shape[0].shape) == tuple(numbers.shape)
    return same and numbers.dim() == 2 and numbers.shape[1] > 1 and saved_dimension(node) == 0
