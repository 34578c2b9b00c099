"""Shapes of predictions and targets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from poise.doctor.probes.probe import Probe
from poise.doctor.tap.graph import op_name, output_shape, parents, saved
from poise.doctor.tap.user_line import user_line

if TYPE_CHECKING:
    from poise.doctor.tap.backward_pass import BackwardPass
    from poise.doctor.tap.loss_call import LossCall
    from poise.doctor.tap.sink import Sink

_REGRESSION = {"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"}
# What stands between the root and the residuals of a loss that is written by hand.
_REDUCING = {"mean", "sum", "mul", "div", "sqrt", "squeeze", "view"}


class LossShapeProbe(Probe):
    """Event ``loss_broadcast``: prediction and target of a regression have different shapes and broadcast."""

    def __init__(self) -> None:
        self._told = False

    def loss_called(self, sink: Sink, call: LossCall) -> None:
        """Compare the shapes that a loss function is given."""
        a, b = tuple(call.input.shape), tuple(call.target.shape)
        if call.function in _REGRESSION and _is_outer(a, b):
            self._tell(sink, call.function, a, b)

    def before_backward(self, sink: Sink, backward: BackwardPass) -> None:
        """Compare the shapes within a loss that is written by hand: ``((prediction - target) ** 2).mean()``."""
        if self._told or not isinstance(backward.root, Tensor):
            return
        difference = _difference(backward.root.grad_fn)
        if difference is None:
            return
        made, given = output_shape(difference), [output_shape(node) for node in parents(difference)]
        # Differences of all pairs of predictions are meant; only one of the two may be a prediction.
        if made is None or len(given) != 1 or given[0] is None or op_name(parents(difference)[0]) in _PAIRING:
            return
        prediction = given[0]
        if len(made) == 2 and made[0] == made[1] > 1 and prediction in ((made[0], 1), (made[0],)):
            target = (made[0],) if len(prediction) == 2 else (made[0], 1)
            self._tell(sink, "a difference", prediction, target)

    def _tell(self, sink: Sink, function: str, prediction: tuple[int, ...], target: tuple[int, ...]) -> None:
        if self._told:
            return
        self._told = True
        payload = {"function": function, "prediction": prediction, "target": target, "source": user_line()}
        sink.event(sink.run_step, "loss_broadcast", payload)


_PAIRING = {"unsqueeze", "view", "unsafeview", "expand", "index"}


def _is_outer(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Return whether two shapes hold equally many numbers and broadcast to more: one by one was meant."""
    if a == b or _count(a) != _count(b):
        return False
    width = max(len(a), len(b))
    a, b = (1,) * (width - len(a)) + a, (1,) * (width - len(b)) + b
    if any(x != y and 1 not in (x, y) for x, y in zip(a, b, strict=True)):
        return False
    return _count(tuple(map(max, a, b))) > _count(a)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _difference(node: Any, depth: int = 8) -> Any:
    """Return the subtraction whose square or absolute value a loss reduces to one number; ``None`` if there is none."""
    for _ in range(depth):
        if node is None:
            return None
        before = parents(node)
        name = op_name(node)
        if name in ("pow", "abs") and saved(node, "self") is not None:
            return before[0] if before and op_name(before[0]) in ("sub", "rsub") else None
        if name == "mul" and len(before) == 2 and before[0] is before[1]:  # a residual times itself
            return before[0] if op_name(before[0]) in ("sub", "rsub") else None
        if name not in _REDUCING or len(before) != 1:
            return None
        node = before[0]
    return None
