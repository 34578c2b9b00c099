"""How far the first predictions of a regression are from their targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from poise.doctor.probes.contracts.loss_shapes import difference_in
from poise.doctor.probes.probe import Probe
from poise.doctor.tap.graph import op_name, saved

if TYPE_CHECKING:
    from poise.doctor.tap.backward_pass import BackwardPass
    from poise.doctor.tap.loss_call import LossCall
    from poise.doctor.tap.sink import Sink


class ResidualProbe(Probe):
    """Event ``first_residuals``: mean and standard deviation of the first residuals of a squared loss.

    A model gives numbers of order 1 before it has learned: these are, with the sign changed, those of the targets.
    """

    def __init__(self) -> None:
        self._told = False

    def loss_called(self, sink: Sink, call: LossCall) -> None:
        """Compare what ``mse_loss`` is given."""
        if call.function == "mse_loss" and call.input.shape == call.target.shape:
            self._tell(sink, call.input.detach() - call.target.detach())

    def before_backward(self, sink: Sink, backward: BackwardPass) -> None:
        """Read the residuals that a square written by hand keeps."""
        if self._told or not isinstance(backward.root, Tensor):
            return
        square, _ = difference_in(backward.root.grad_fn)
        residuals = saved(square, "self") if square is not None and op_name(square) == "pow" else None
        if isinstance(residuals, Tensor) and saved(square, "exponent") == 2:
            self._tell(sink, residuals.detach())

    def _tell(self, sink: Sink, residuals: Tensor) -> None:
        if not self._told and residuals.numel() > 1 and residuals.is_floating_point():
            self._told = True
            numbers = residuals.double()
            payload = {"mean": float(numbers.mean()), "std": float(numbers.std(correction=0))}
            sink.event(sink.run_step, "first_residuals", payload)
